package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// Identity is one identifier of a person.
type Identity struct {
	// Kind is phone, email, client_user_id, shopify_id, klaviyo_id, or "custom:"
	// and the name of the identifier.
	Kind  string `json:"kind"`
	Value string `json:"value"`
}

const (
	phoneKind  = "phone"
	emailKind  = "email"
	customKind = "custom:"
)

// Types of a subscription. A third can only be unsubscribed.
const (
	Marketing     = "MARKETING"
	Transactional = "TRANSACTIONAL"
	abandoned     = "CHECKOUT_ABANDONED"
)

// Channels of a subscription: that of phones and that of e-mail addresses.
const (
	textChannel  = "TEXT"
	emailChannel = "EMAIL"
)

// Subscription is a type and channel combination.
type Subscription struct {
	Type    string `json:"type"`
	Channel string `json:"channel"`
}

// request is what a call asks for, as far as it could be read.
type request struct {
	arrival  uint64 // its number
	who      []Identity
	user     json.RawMessage // as sent, for the answer
	external json.RawMessage

	attributes []scalar // SetAttributes, in the order of their names

	users []bulkUser // BulkAttributes
	job   string     // BulkStatus
	base  string     // of the URL that was called

	unit              string // Subscribe
	language, country string
	kind              string
	single            bool

	subscriptions []Subscription // Unsubscribe
	silent        bool

	problems []string // not empty: the call is a 400
}

// readRequest reads a call's body or query.
func readRequest(endpoint Endpoint, r *http.Request, body []byte) request {
	s := new(strict)
	var q request
	switch endpoint {
	case SetAttributes:
		q = s.setAttributes(body)
	case Subscribe:
		q = s.subscribe(body)
	case Unsubscribe:
		q = s.unsubscribe(body)
	case GetAttributes, GetSubscriptions:
		q = s.query(r.URL.RawQuery)
	case BulkAttributes:
		q = s.bulkAttributes(body)
	case BulkStatus:
		q = request{job: strings.TrimPrefix(r.URL.Path, bulkPath), base: "http://" + r.Host}
	}
	if strings.HasPrefix(string(endpoint), http.MethodPost) {
		media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
		if !strings.EqualFold(strings.TrimSpace(media), "application/json") {
			s.fail("content-type", "must be application/json")
		}
	}
	q.problems = s.problems
	return q
}

// setAttributes reads CustomAttributesRequest.
func (s *strict) setAttributes(body []byte) request {
	var q request
	fields := s.body(body, "properties", "user")
	if raw, ok := fields["user"]; ok {
		user := s.object("user", raw, "phone", "email", "externalIdentifiers")
		q.who = s.contacts(user)
		if external, ok := user["externalIdentifiers"]; ok {
			q.who = append(q.who, s.externals("user.externalIdentifiers", external, "clientUserId", "customIdentifiers")...)
		}
		if len(q.who) == 0 {
			s.fail("user", "phone, email or an external identifier is required")
		}
	} else if fields != nil {
		s.fail("user", "is required")
	}
	if raw, ok := fields["properties"]; ok {
		q.attributes = s.properties("properties", raw)
	} else if fields != nil {
		s.fail("properties", "is required")
	}
	return q
}

// maxNameRunes is the longest name of an attribute, in characters.
const maxNameRunes = 200

// properties reads attribute names and values.
func (s *strict) properties(at string, raw json.RawMessage) []scalar {
	var scalars []scalar
	for name, value := range s.object(at, raw) {
		path := fmt.Sprintf("%s[%q]", at, name)
		if name == "" {
			s.fail(path, "a name must not be empty")
		}
		if utf8.RuneCountInString(name) > maxNameRunes {
			s.fail(path, "a name has at most %d characters", maxNameRunes)
		}
		v := scalar{Name: name}
		switch kind := kindOf(value); kind {
		case '[':
			s.fail(path, "arrays are not supported")
		case '{', 'n':
			s.fail(path, "must be a string, a number or a boolean")
		case '"':
			v.Quoted = true
			_ = json.Unmarshal(value, &v.Text) // valid: it was read as JSON before
		default:
			v.Text = string(value)
		}
		scalars = append(scalars, v)
	}
	slices.SortFunc(scalars, func(a, b scalar) int { return strings.Compare(a.Name, b.Name) })
	return scalars
}

// subscribe reads AddSubscriptionsRequestDto.
func (s *strict) subscribe(body []byte) request {
	var q request
	fields := s.body(body, "user", "signUpSourceId", "externalIdentifiers", "locale", "subscriptionType", "singleOptIn")
	q.user = fields["user"]
	q.who = s.user(fields)
	if raw, ok := fields["externalIdentifiers"]; ok {
		q.external = raw
		q.who = append(q.who, s.externals("externalIdentifiers", raw, "clientUserId", "shopifyId", "klaviyoId", "customIdentifiers")...)
	}
	if raw, ok := fields["signUpSourceId"]; ok {
		q.unit = s.text("signUpSourceId", raw)
	}
	if raw, ok := fields["locale"]; ok {
		locale := s.object("locale", raw, "language", "country")
		q.language = s.required("locale.language", locale["language"])
		q.country = s.required("locale.country", locale["country"])
	}
	if raw, ok := fields["subscriptionType"]; ok {
		q.kind = s.oneOf("subscriptionType", raw, Marketing, Transactional)
	}
	if raw, ok := fields["singleOptIn"]; ok {
		q.single = s.flag("singleOptIn", raw)
	}
	if fields != nil && q.unit == "" && (q.language == "" || q.kind == "") {
		s.fail("body", "signUpSourceId, or both locale and subscriptionType, are required")
	}
	return q
}

// unsubscribe reads UnsubscribeSubscriptionsRequestDto.
func (s *strict) unsubscribe(body []byte) request {
	var q request
	fields := s.body(body, "user", "subscriptions", "notification")
	q.user = fields["user"]
	q.who = s.user(fields)
	if raw, ok := fields["subscriptions"]; ok {
		for i, element := range s.list("subscriptions", raw) {
			path := fmt.Sprintf("subscriptions[%d]", i)
			named := s.object(path, element, "type", "channel")
			q.subscriptions = append(q.subscriptions, Subscription{
				Type:    s.oneOf(path+".type", named["type"], Marketing, Transactional, abandoned),
				Channel: s.oneOf(path+".channel", named["channel"], textChannel, emailChannel),
			})
		}
	}
	if raw, ok := fields["notification"]; ok {
		notification := s.object("notification", raw, "language", "disabled")
		if raw, ok := notification["language"]; ok {
			s.oneOf("notification.language", raw, "en-US", "fr-CA")
		}
		if raw, ok := notification["disabled"]; ok {
			q.silent = s.flag("notification.disabled", raw)
		}
	}
	return q
}

// user reads the required UserDto of the subscription calls.
func (s *strict) user(fields map[string]json.RawMessage) []Identity {
	raw, ok := fields["user"]
	if !ok {
		if fields != nil {
			s.fail("user", "is required")
		}
		return nil
	}
	who := s.contacts(s.object("user", raw, "phone", "email"))
	if len(who) == 0 {
		s.fail("user", "phone or email is required")
	}
	return who
}

// contacts reads the phone and e-mail of a user object.
func (s *strict) contacts(user map[string]json.RawMessage) []Identity {
	var who []Identity
	if raw, ok := user["phone"]; ok {
		phone := s.text("user.phone", raw)
		s.phone("user.phone", phone)
		who = append(who, Identity{phoneKind, phone})
	}
	if raw, ok := user["email"]; ok {
		email := s.text("user.email", raw)
		s.email("user.email", email)
		who = append(who, Identity{emailKind, strings.ToLower(email)})
	}
	return who
}

// externals reads external identifiers; known are the names allowed here.
func (s *strict) externals(path string, raw json.RawMessage, known ...string) []Identity {
	var who []Identity
	fields := s.object(path, raw, known...)
	for _, single := range []struct{ name, kind string }{
		{"clientUserId", "client_user_id"}, {"shopifyId", "shopify_id"}, {"klaviyoId", "klaviyo_id"},
	} {
		if raw, ok := fields[single.name]; ok && slices.Contains(known, single.name) {
			who = append(who, Identity{single.kind, s.text(path+"."+single.name, raw)})
		}
	}
	if raw, ok := fields["customIdentifiers"]; ok {
		for i, element := range s.list(path+".customIdentifiers", raw) {
			at := fmt.Sprintf("%s.customIdentifiers[%d]", path, i)
			pair := s.object(at, element, "name", "value")
			name := s.required(at+".name", pair["name"])
			who = append(who, Identity{customKind + name, s.required(at+".value", pair["value"])})
		}
	}
	return who
}

// required is text that must be there.
func (s *strict) required(path string, raw json.RawMessage) string {
	if raw == nil {
		s.fail(path, "is required")
		return ""
	}
	return s.text(path, raw)
}

// query reads the single identifier of a GET.
func (s *strict) query(raw string) request {
	values, err := url.ParseQuery(raw)
	if err != nil {
		s.fail("query", "%v", err)
	}
	for name := range values {
		if name != phoneKind && name != emailKind {
			s.fail("query", "unknown parameter %q", name)
		}
	}
	phones, emails := values[phoneKind], values[emailKind]
	if len(phones)+len(emails) != 1 {
		s.fail("query", "exactly one of phone and email is required")
		return request{}
	}
	if len(phones) == 1 {
		s.phone("phone", phones[0])
		return request{who: []Identity{{phoneKind, phones[0]}}}
	}
	s.email("email", emails[0])
	return request{who: []Identity{{emailKind, strings.ToLower(emails[0])}}}
}
