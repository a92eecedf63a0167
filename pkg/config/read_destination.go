package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"attentive.internal/pkg/access"
	"github.com/nyaruka/phonenumbers"
)

// destinationReader reads destinations that log in with the credentials.
type destinationReader struct {
	credentials []Credential
	used        map[string]bool // ids of credentials that destinations name
	ids         ids
}

func (r *destinationReader) read(v value) Destination {
	m := v.mapping()
	d := Destination{}
	d.ID, d.Name = r.ids.read(m)
	d.Plugin = need(m, "plugin", "write "+PluginSegments+" (segments) or "+PluginAttributes+" (attributes)",
		choice(PluginSegments, PluginAttributes))
	d.Credential = need(m, "credential", "name the id of a credential", text)
	r.reference(m, d)
	d.Access = get(m, "access", access.Permissions{Services: true}, readAccess(access.Permissions{Services: true}))
	const remedy = "add a data template; without one the destination takes no jobs"
	var templates templateReader
	switch d.Plugin {
	case PluginSegments:
		d.Segment, templates = readSegmentSettings(m)
		if !strings.Contains(strings.ToLower(d.Name), "segments") {
			m.warn(fmt.Sprintf("name %q lacks \"Segments\"", d.Name), "put it in, so that people who send segments find the destination")
		}
	case PluginAttributes:
		d.Attributes, templates = readAttributesSettings(m)
	default:
		return d // what its settings and templates should be cannot be known
	}
	d.Templates = need(m, "templates", remedy, someOf(templates.read, remedy))
	m.done()
	return d
}

// reference checks that the destination's credential exists and fits.
func (r *destinationReader) reference(m *mapping, d Destination) {
	if d.Credential == "" {
		return
	}
	r.used[d.Credential] = true
	v, _ := m.lookup("credential")
	i := slices.IndexFunc(r.credentials, func(c Credential) bool { return c.ID == d.Credential })
	if i < 0 {
		var known []string
		for _, c := range r.credentials {
			if c.ID != "" {
				known = append(known, c.ID)
			}
		}
		v.fault(fmt.Sprintf("there is no credential %q", d.Credential), suggest(d.Credential, known, "add it to credentials"))
		return
	}
	fits := map[string]string{PluginSegments: TypeSFTP, PluginAttributes: TypeAPI}[d.Plugin]
	if got := r.credentials[i].Type; got != "" && fits != "" && got != fits {
		v.fault(fmt.Sprintf("credential %q is of type %s", d.Credential, got),
			fmt.Sprintf("name one of type %s: plugin %s takes no other", fits, d.Plugin))
	}
}

func readAccess(fallback access.Permissions) func(value) access.Permissions {
	return func(v value) access.Permissions {
		m := v.mapping()
		p := access.Permissions{
			BusinessUsers: get(m, "business_users", fallback.BusinessUsers, boolean),
			RestrictedPII: get(m, "restricted_pii", fallback.RestrictedPII, boolean),
			Services:      get(m, "services", fallback.Services, boolean),
		}
		m.done()
		return p
	}
}

// settings returns the mapping of the key settings, nil when it cannot be read.
func settings(m *mapping, remedy string) *mapping {
	return need(m, "settings", remedy, value.mapping)
}

// readRegion reads a region that the phone library knows.
func readRegion(v value) string {
	s := text(v)
	if s != "" && !phonenumbers.GetSupportedRegions()[s] {
		known := slices.Collect(maps.Keys(phonenumbers.GetSupportedRegions()))
		remedy := "write an ISO 3166-1 code in capitals, as US or GB"
		if slices.Contains(known, strings.ToUpper(s)) {
			remedy = fmt.Sprintf("did you mean %q?", strings.ToUpper(s))
		}
		v.fault(fmt.Sprintf("is %q", s), remedy)
		return ""
	}
	return s
}

func readAttributesSettings(m *mapping) (*AttributesSettings, templateReader) {
	s := settings(m, "write at least identifier")
	result := &AttributesSettings{
		Identifier:      need(s, "identifier", "write phone or email: what every row must have", choice(Phone, Email)),
		SignUp:          readSignUp(s),
		SingleOptIn:     get(s, "single_opt_in", false, boolean),
		RetryBudget:     get(s, "retry_budget", defaultRetryBudget, readRetryBudget),
		SubscribeMaxAge: get(s, "subscribe_max_age", 7*24*time.Hour, duration(time.Minute, 365*24*time.Hour)),
		UnknownSettle:   get(s, "unknown_settle", time.Minute, duration(100*time.Millisecond, time.Hour)),
	}
	readBulk(s, result)
	readDataGuards(s, result)
	templates := templateReader{
		plugin:     PluginAttributes,
		identifier: result.Identifier,
		region:     get(s, "default_region", "", readRegion),
		signUp:     s == nil || s.has("sign_up_unit") || s.has("locale"),
		ids:        &ids{what: "template"},
	}
	s.done()
	return result, templates
}

var (
	language = regexp.MustCompile(`^[a-z]{2}$`)
	country  = regexp.MustCompile(`^[A-Z]{2}$`)
)

// readSignUp reads the three keys that say what a subscribe signs up to.
func readSignUp(m *mapping) SignUp {
	unit := get(m, "sign_up_unit", "", text)
	up := get(m, "locale", SignUp{}, func(v value) SignUp {
		l := v.mapping()
		up := SignUp{
			Language: need(l, "language", "write an ISO 639-1 code, as en", matching(language, "write an ISO 639-1 code, as en")),
			Country:  need(l, "country", "write an ISO 3166-1 code, as US", matching(country, "write an ISO 3166-1 code, as US")),
		}
		l.done()
		return up
	})
	up.Unit = unit
	up.SubscriptionType = get(m, "subscription_type", "", choice("MARKETING", "TRANSACTIONAL"))
	locale, hasLocale := m.lookup("locale")
	kind, hasKind := m.lookup("subscription_type")
	switch {
	case m.has("sign_up_unit") && hasLocale:
		locale.fault("is there beside sign_up_unit", "remove one of the two")
	case m.has("sign_up_unit") && hasKind:
		kind.fault("is there beside sign_up_unit", "remove one of the two")
	case hasLocale && !hasKind:
		locale.fault("is there without subscription_type", "add subscription_type: MARKETING or TRANSACTIONAL")
	case hasKind && !hasLocale:
		kind.fault("is there without locale", "add locale: {language: en, country: US}")
	}
	return up
}

var defaultRetryBudget = RetryBudget{Duration: 24 * time.Hour, Attempts: 10}

func readRetryBudget(v value) RetryBudget {
	m := v.mapping()
	b := RetryBudget{
		Duration: get(m, "duration", defaultRetryBudget.Duration, duration(time.Second, 30*24*time.Hour)),
		Attempts: get(m, "attempts", defaultRetryBudget.Attempts, whole(1, 1000)),
	}
	m.done()
	return b
}
