package config

import (
	"fmt"
	"unicode/utf8"

	"attentive.internal/pkg/access"
	"attentive.internal/pkg/segmentname"
)

// maxAttributeName is the most characters Attentive allows in a name.
const maxAttributeName = 200

// templateReader reads the templates of one destination.
type templateReader struct {
	plugin     string
	identifier Identifier       // of the destination, "" when it could not be read
	settings   *SegmentSettings // of the destination, for templates to override
	region     string           // default region of the destination
	signUp     bool             // the destination says what a subscribe signs up to
	ids        *ids
}

func (r templateReader) read(v value) Template {
	m := v.mapping()
	t := Template{
		Campaigns:     get(m, "campaigns", false, boolean),
		Access:        get(m, "access", access.Permissions{}, readAccess(access.Permissions{})),
		DefaultRegion: get(m, "default_region", r.region, readRegion),
	}
	t.ID, t.Name = r.ids.read(m)
	if r.plugin == PluginSegments {
		t.Segment = get(m, "settings", r.settings, r.overrides)
		r.identifier = t.Segment.Identifier
		t.Filename = get(m, "filename_template", segmentname.Template{}, readFilename)
		r.campaigns(m, t)
	}
	const remedy = "name the columns of the source, as {phone: COLUMN}"
	columns := need(m, "columns", remedy, value.mapping)
	t.Columns = r.readColumns(columns)
	if r.plugin == PluginAttributes {
		t.EveryColumn = !m.has("attributes")
		t.Attributes = get(m, "attributes", nil, readAttributes)
	}
	m.done()
	return t
}

// overrides reads what a template has in place of the destination's settings.
func (r templateReader) overrides(v value) *SegmentSettings {
	m := v.mapping()
	settings := readFileSettings(m, *r.settings)
	m.done()
	return &settings
}

// campaigns checks the filename template of a template that campaigns may use.
func (r templateReader) campaigns(m *mapping, t Template) {
	v, ok := m.lookup("filename_template")
	if !ok || !t.Campaigns {
		return
	}
	if !t.Filename.Uses(segmentname.Campaign) && !t.Filename.Uses(segmentname.Group) {
		v.fault("uses neither campaign_name nor group_name", "use one of them, or set campaigns: false")
		return
	}
	if t.Filename.Uses(segmentname.List) {
		v.warn("uses list_name in a template for campaigns", "use campaign_name instead")
	}
}

func readFilename(v value) segmentname.Template {
	t, err := segmentname.Parse(anyText(v))
	if err != nil {
		v.fault(err.Error(), `write text and {{ variables }} as in "{{ campaign_name }}_{{ group_name }}"`)
		return segmentname.Template{}
	}
	return t
}

// readColumns reads the columns that have a meaning of their own.
func (r templateReader) readColumns(m *mapping) Columns {
	c := Columns{
		Phone: get(m, "phone", "", text),
		Email: get(m, "email", "", text),
	}
	if r.plugin == PluginSegments {
		c.Group = get(m, "group", "", text)
	}
	if r.plugin == PluginAttributes {
		c.ClientUserID = get(m, "client_user_id", "", text)
		c.ShopifyID = get(m, "shopify_id", "", text)
		c.KlaviyoID = get(m, "klaviyo_id", "", text)
		c.OptIn = get(m, "opt_in", "", text)
	}
	m.done()
	if r.identifier == "" {
		return c
	}
	if !m.has(string(r.identifier)) {
		m.missing(string(r.identifier), fmt.Sprintf("name the column of the %s, the identifier that is sent", r.identifier))
	}
	other := Phone
	if r.identifier == Phone {
		other = Email
	}
	if v, ok := m.lookup(string(other)); ok && r.plugin == PluginSegments {
		v.fault(fmt.Sprintf("is there although the identifier is %s", r.identifier),
			"remove it: a file holds phones or e-mails, not both")
	}
	if c.OptIn != "" && !r.signUp {
		v, _ := m.lookup("opt_in")
		v.fault("is there although the settings do not say what people sign up to",
			"add sign_up_unit, or locale and subscription_type, to the settings of the destination")
	}
	return c
}

// readAttributes reads the mapping of columns to attributes.
func readAttributes(v value) []Attribute {
	m := v.mapping()
	if m == nil {
		return nil
	}
	attributes := make([]Attribute, 0, len(m.entries))
	names := make(map[string]string, len(m.entries))
	for _, e := range m.entries {
		if e.key == "" {
			e.name.fault("is empty", "write the name of a column")
			continue
		}
		a := readAttribute(e)
		if column, again := names[a.Name]; again && a.Name != "" {
			e.value.fault(fmt.Sprintf("attribute %q is there already, from column %q", a.Name, column), "give it a name of its own")
		}
		names[a.Name] = e.key
		attributes = append(attributes, a)
	}
	return attributes
}

func readAttribute(e entry) Attribute {
	m := e.value.mapping()
	a := Attribute{
		Column: e.key,
		Name:   get(m, "name", e.key, text),
		Type:   get(m, "type", String, choice(String, Number, Boolean)),
	}
	m.done()
	if n := utf8.RuneCountInString(a.Name); n > maxAttributeName {
		e.value.fault(fmt.Sprintf("has a name of %d characters", n), fmt.Sprintf("give it a name of at most %d", maxAttributeName))
	}
	return a
}
