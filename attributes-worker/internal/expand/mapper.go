package expand

import (
	"crypto/sha1" //nolint:gosec // of UUIDs
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/structpb"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/sensitive"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/identifier"
	"attentive.internal/pkg/source"
)

// Reasons of rejected rows, beside those of package identifier.
const (
	// attributeType is a value that does not fit the attribute's type.
	attributeType identifier.Reject = "attribute_type"
	// notText is a value that is not UTF-8.
	notText identifier.Reject = "not_utf8"
	// optInUnclear is an opt-in value that is neither yes nor no.
	optInUnclear identifier.Reject = "opt_in_unclear"
	// clientUserIDTooLong passes Attentive's limit.
	clientUserIDTooLong identifier.Reject = "client_user_id_too_long"
	// profileInvalid is a row whose profile breaks the contract in another way.
	profileInvalid identifier.Reject = "profile_invalid"
	// profileTooLarge is a row of too many or too long values.
	profileTooLarge identifier.Reject = "profile_too_large"
	// sensitiveData is a value of a kind that Attentive must not be given. It is not
	// kept with the reason.
	sensitiveData identifier.Reject = "sensitive_data"
	// attributeMissing is a value that is not there, where that is not allowed.
	attributeMissing identifier.Reject = "attribute_missing"
	// nothingToSend is a row with an identifier and nothing else.
	nothingToSend identifier.Reject = "nothing_to_send"
)

const (
	// valueBytes is more than what a value takes beside its name and its text.
	valueBytes       = 24
	maxAttributeName = 200 // characters; Attentive, custom attributes
	maxClientUserID  = 100 // characters; Attentive, bulk user attributes
	// maxProfileBytes is the most that names and values of a profile's attributes
	// have: with all else they stay below what a message may have.
	maxProfileBytes = contract.MaxMessageBytes / 2
)

// mapper turns rows of one source into profiles, by a template.
type mapper struct {
	job      uuid.UUID
	primary  config.Identifier
	nulls    config.Nulls
	guard    *sensitive.Guard
	template config.Template
	phones   *identifier.Phones
	reader   *source.Reader

	ids        []column // of identifiers
	optIn      int      // -1: the template has no such column
	attributes []column
	bound      int // columns of the source that attributes were chosen from

	// What follows is of the row expanded last, and used again for the next one.
	profiles []*attentivev1.Profile
	person   *attentivev1.Identifiers
	set      *attentivev1.Profile // of attributes
	values   map[string]*structpb.Value
}

// column is one that the template uses.
type column struct {
	index int
	name  string // of the identifier or the attribute
	typ   config.AttributeType
	value *structpb.Value // of an attribute; used again for each row
}

// newMapper fails, Permanent, when the source lacks a column of the template.
func newMapper(job uuid.UUID, d config.Destination, t config.Template, r *source.Reader) (*mapper, error) {
	phones, err := identifier.NewPhones(t.DefaultRegion)
	if err != nil {
		return nil, err
	}
	m := &mapper{
		job: job, primary: d.Attributes.Identifier, nulls: d.Attributes.Nulls, guard: sensitive.New(d.Attributes.Sensitive),
		template: t, phones: phones, reader: r, optIn: -1,
		person: &attentivev1.Identifiers{}, values: make(map[string]*structpb.Value),
	}
	m.set = &attentivev1.Profile{
		Identifiers: m.person,
		Operation:   &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: &structpb.Struct{Fields: m.values}}},
	}
	c := t.Columns
	for _, id := range []struct{ name, column string }{
		{phone, c.Phone}, {email, c.Email}, {clientUserID, c.ClientUserID}, {shopifyID, c.ShopifyID}, {klaviyoID, c.KlaviyoID},
	} {
		if id.column == "" {
			continue
		}
		i, err := r.Column(id.column)
		if err != nil {
			return nil, err
		}
		m.ids = append(m.ids, column{index: i, name: id.name})
	}
	if c.OptIn != "" {
		if m.optIn, err = r.Column(c.OptIn); err != nil {
			return nil, err
		}
	}
	for _, a := range t.Attributes {
		i, err := r.Column(a.Column)
		if err != nil {
			return nil, err
		}
		if err := m.use(column{index: i, name: a.Name, typ: a.Type}); err != nil {
			return nil, err
		}
	}
	return m, m.bindAll()
}

// Names of identifiers.
const (
	phone        = "phone"
	email        = "email"
	clientUserID = "client_user_id"
	shopifyID    = "shopify_id"
	klaviyoID    = "klaviyo_id"
)

// bindAll chooses the columns that are attributes under their own names. Rows
// of NDJSON can bring new ones at any time.
func (m *mapper) bindAll() error {
	if !m.template.EveryColumn {
		return nil
	}
	c := m.template.Columns
	named := []string{c.Phone, c.Email, c.ClientUserID, c.ShopifyID, c.KlaviyoID, c.OptIn}
	names := m.reader.Columns()
	for i := m.bound; i < len(names); i++ {
		if slices.Contains(named, names[i]) {
			continue
		}
		if utf8.RuneCountInString(names[i]) > maxAttributeName {
			return fault.Permanentf(fault.InvalidProfile, "column %d has a name of more than %d characters, which no attribute may have: name the attributes in the template", i+1, maxAttributeName)
		}
		index, err := m.reader.Column(names[i])
		if err != nil {
			return err
		}
		if err := m.use(column{index: index, name: names[i], typ: config.String}); err != nil {
			return err
		}
	}
	m.bound = len(names)
	return nil
}

// use makes a column an attribute. It fails, Permanent, when no row may have it.
func (m *mapper) use(c column) error {
	if phrase := m.guard.Name(c.name); phrase != "" {
		return fault.Permanentf(fault.SensitiveData, "column %d would become an attribute of sensitive data (%s), which Attentive must not be given: "+
			"leave it out of the template, or list its name under sensitive.allow if it is something else", c.index+1, phrase)
	}
	c.value = &structpb.Value{}
	m.attributes = append(m.attributes, c)
	return nil
}

// expanded is what a row became: profiles, or the reason why none can be sent.
type expanded struct {
	number uint64
	// profiles are the row's attributes first, then its consent.
	profiles []*attentivev1.Profile
	reject   identifier.Reject
	bad      []byte // the value that was the reason
}

// expand maps a row. Its result is valid until the next call.
func (m *mapper) expand(row source.Row) (expanded, error) {
	made := expanded{number: row.Number, profiles: m.profiles[:0]}
	if len(row.Values) > m.bound {
		if err := m.bindAll(); err != nil {
			return made, err
		}
	}
	if made.reject, made.bad = m.add(&made, row); made.reject != "" {
		made.profiles = nil
		return made, nil
	}
	m.profiles = made.profiles
	return made, nil
}

// add adds what a row says to made, or returns why it cannot be sent.
func (m *mapper) add(made *expanded, row source.Row) (reason identifier.Reject, bad []byte) {
	if reason, bad = m.identifiers(row); reason != "" {
		return reason, bad
	}
	if reason, bad = m.attribute(row); reason != "" {
		return reason, bad
	}
	consent, reason, bad := m.consent(row)
	if reason != "" {
		return reason, bad
	}
	if len(m.values) > 0 {
		m.set.Id, m.set.Row = m.id(row.Number, "attributes"), row.Number
		made.profiles = append(made.profiles, m.set)
	}
	if consent != nil {
		consent.Id, consent.Identifiers, consent.Row = m.id(row.Number, "consent"), m.person, row.Number
		made.profiles = append(made.profiles, consent)
	}
	if len(made.profiles) == 0 {
		return nothingToSend, nil
	}
	for _, p := range made.profiles {
		if contract.Validate(p) != nil {
			return profileInvalid, nil
		}
	}
	return "", nil
}

// id of a profile: the same whenever the row is expanded. It is a UUID of version 5
// in the name space of the job.
func (m *mapper) id(row uint64, what string) string {
	var room [64]byte
	name := append(append(append(room[:0], m.job[:]...), what...), '/')
	sum := sha1.Sum(strconv.AppendUint(name, row, 10)) //nolint:gosec // no secret: what version 5 is made of
	id := uuid.UUID(sum[:16])
	id[6] = id[6]&0x0f | 5<<4
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// identifiers takes those of a row. Only the primary one must be there and usable: of
// the others what cannot be sent is left out.
func (m *mapper) identifiers(row source.Row) (identifier.Reject, []byte) {
	p := m.person
	p.Phone, p.Email, p.ClientUserId, p.ShopifyId, p.KlaviyoId = "", "", "", "", ""
	for _, c := range m.ids {
		raw := row.Values[c.index].Text
		reason := m.identify(p, c.name, raw)
		if reason != "" && (c.name == string(m.primary) || reason == clientUserIDTooLong) {
			return reason, raw
		}
	}
	return "", nil
}

func (m *mapper) identify(ids *attentivev1.Identifiers, name string, raw []byte) identifier.Reject {
	var dst [64]byte
	switch name {
	case phone:
		v, reason := m.phones.Normalize(dst[:0], raw)
		ids.Phone = string(v)
		return reason
	case email:
		v, reason := identifier.Email(dst[:0], raw)
		ids.Email = string(v)
		return reason
	}
	text := strings.TrimSpace(string(raw))
	if !utf8.ValidString(text) {
		return notText
	}
	switch name {
	case clientUserID:
		if utf8.RuneCountInString(text) > maxClientUserID {
			return clientUserIDTooLong
		}
		ids.ClientUserId = text
	case shopifyID:
		ids.ShopifyId = text
	case klaviyoID:
		ids.KlaviyoId = text
	}
	return ""
}

// attribute takes the attributes that a row sets.
func (m *mapper) attribute(row source.Row) (identifier.Reject, []byte) {
	clear(m.values)
	bytes := 0
	for _, a := range m.attributes {
		if a.index >= len(row.Values) || row.Values[a.index].Kind == source.Empty {
			switch {
			case m.nulls == config.RejectNulls:
				return attributeMissing, nil
			case m.nulls == config.EmptyNulls && a.typ == config.String:
				m.values[a.name] = text(a.value, "")
			}
			continue
		}
		raw := row.Values[a.index].Text
		if bytes += len(a.name) + len(raw) + valueBytes; bytes > maxProfileBytes {
			return profileTooLarge, nil
		}
		value := string(raw)
		if m.guard.Value(a.name, value) != "" {
			return sensitiveData, nil
		}
		if reason := convert(a, value); reason != "" {
			return reason, raw
		}
		m.values[a.name] = a.value
	}
	return "", nil
}

// convert makes text the value of an attribute.
func convert(a column, value string) identifier.Reject {
	if !utf8.ValidString(value) {
		return notText
	}
	switch a.typ {
	case config.Number:
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) { // JSON has no such numbers
			return attributeType
		}
		number(a.value, n)
	case config.Boolean:
		b, ok := yesNo(value)
		if !ok {
			return attributeType
		}
		a.value.Kind = &structpb.Value_BoolValue{BoolValue: b}
	default:
		text(a.value, value)
	}
	return ""
}

// text makes v a text, and returns it.
func text(v *structpb.Value, s string) *structpb.Value {
	if kind, ok := v.GetKind().(*structpb.Value_StringValue); ok {
		kind.StringValue = s
	} else {
		v.Kind = &structpb.Value_StringValue{StringValue: s}
	}
	return v
}

// number makes v a number.
func number(v *structpb.Value, n float64) {
	if kind, ok := v.GetKind().(*structpb.Value_NumberValue); ok {
		kind.NumberValue = n
	} else {
		v.Kind = &structpb.Value_NumberValue{NumberValue: n}
	}
}

// consent of a row: nil when it says nothing.
func (m *mapper) consent(row source.Row) (*attentivev1.Profile, identifier.Reject, []byte) {
	if m.optIn < 0 || m.optIn >= len(row.Values) || row.Values[m.optIn].Kind == source.Empty {
		return nil, "", nil
	}
	raw := row.Values[m.optIn].Text
	in, ok := yesNo(string(raw))
	switch {
	case !ok:
		return nil, optInUnclear, raw
	case in:
		return &attentivev1.Profile{Operation: &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}}}, "", nil
	}
	return &attentivev1.Profile{Operation: &attentivev1.Profile_Unsubscribe{Unsubscribe: &attentivev1.Unsubscribe{}}}, "", nil
}

// yesNo reads a truth value as exports spell it.
func yesNo(text string) (value, ok bool) {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "true", "t", "yes", "y", "1", "in", "opt-in", "opted-in", "subscribed":
		return true, true
	case "false", "f", "no", "n", "0", "out", "opt-out", "opted-out", "unsubscribed":
		return false, true
	}
	return false, false
}
