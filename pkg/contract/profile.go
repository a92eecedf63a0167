package contract

import (
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	attentivev1 "attentive.internal/proto/attentive/v1"
	"google.golang.org/protobuf/types/known/structpb"
)

// Limits of a profile. Attentive publishes those of the client user id and of
// attribute names; the others keep a message far below [MaxMessageBytes].
const (
	maxClientUserIDRunes = 100
	maxAttributeRunes    = 200
	maxIdentifierBytes   = 512
	maxEmailBytes        = 254 // RFC 5321, path without brackets
)

// checkProfile is the hot path: a valid profile allocates nothing.
func checkProfile(p *attentivev1.Profile) []finding {
	var found []finding
	if !isUUID(p.GetId()) {
		found = append(found, finding{"id", "must be a UUID in lower case"})
	}
	found = append(found, checkIdentifiers(p.GetIdentifiers())...)
	switch KindOf(p) {
	case "":
		found = append(found, finding{"operation", "exactly one of attributes, subscribe, unsubscribe is required"})
	case Attributes:
		found = append(found, checkAttributes(p.GetAttributes())...)
	default:
		if p.GetIdentifiers().GetPhone() == "" && p.GetIdentifiers().GetEmail() == "" {
			found = append(found, finding{"identifiers", "phone or email is required to subscribe or unsubscribe"})
		}
	}
	return found
}

func checkIdentifiers(ids *attentivev1.Identifiers) []finding {
	var found []finding
	phone, email := ids.GetPhone(), ids.GetEmail()
	if phone != "" && !isE164(phone) {
		found = append(found, finding{"identifiers.phone", "must be in E.164: + and 7 to 15 digits, the first not 0"})
	}
	if email != "" && !isEmail(email) {
		found = append(found, finding{"identifiers.email", "must be an e-mail address in lower case, at most 254 bytes"})
	}
	if utf8.RuneCountInString(ids.GetClientUserId()) > maxClientUserIDRunes {
		found = append(found, finding{"identifiers.client_user_id", "must have at most 100 characters"})
	}
	if len(ids.GetShopifyId()) > maxIdentifierBytes {
		found = append(found, finding{"identifiers.shopify_id", "must have at most 512 bytes"})
	}
	if len(ids.GetKlaviyoId()) > maxIdentifierBytes {
		found = append(found, finding{"identifiers.klaviyo_id", "must have at most 512 bytes"})
	}
	for name, value := range ids.GetCustom() {
		if name == "" || value == "" || len(name) > maxIdentifierBytes || len(value) > maxIdentifierBytes {
			found = append(found, finding{"identifiers.custom", "names and values must have 1 to 512 bytes"})
			break
		}
	}
	if phone == "" && email == "" && ids.GetClientUserId() == "" &&
		ids.GetShopifyId() == "" && ids.GetKlaviyoId() == "" && len(ids.GetCustom()) == 0 {
		found = append(found, finding{"identifiers", "at least one identifier is required"})
	}
	return found
}

func checkAttributes(a *attentivev1.SetAttributes) []finding {
	values := a.GetValues().GetFields()
	if len(values) == 0 {
		return []finding{{"attributes.values", "at least one attribute is required"}}
	}
	var found []finding
	for name, value := range values {
		if n := utf8.RuneCountInString(name); n < 1 || n > maxAttributeRunes {
			found = append(found, finding{"attributes.values", "attribute names must have 1 to 200 characters"})
			continue
		}
		var text string
		switch v := value.GetKind().(type) {
		case *structpb.Value_StringValue, *structpb.Value_BoolValue:
			continue
		case *structpb.Value_NumberValue:
			if !math.IsNaN(v.NumberValue) && !math.IsInf(v.NumberValue, 0) {
				continue
			}
			text = "a number must be finite"
		case *structpb.Value_ListValue:
			text = "must be a string, number or boolean, not a list"
		case *structpb.Value_StructValue:
			text = "must be a string, number or boolean, not an object"
		default:
			text = "must be a string, number or boolean, not null"
		}
		found = append(found, finding{"attributes.values[" + quoteName(name) + "]", text})
	}
	slices.SortFunc(found, func(a, b finding) int { return strings.Compare(a.field, b.field) })
	return found
}

// isE164 checks the shape only; whether the number exists is for those who
// make profiles from rows.
func isE164(s string) bool {
	if len(s) < 8 || len(s) > 16 || s[0] != '+' || s[1] == '0' {
		return false
	}
	for i := 1; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// isEmail checks the shape only: one @ between two parts, no white space or
// control character, nothing in upper case.
func isEmail(s string) bool {
	at := strings.IndexByte(s, '@')
	if at < 1 || at == len(s)-1 || len(s) > maxEmailBytes || strings.IndexByte(s[at+1:], '@') >= 0 {
		return false
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f || r == utf8.RuneError {
			return false
		}
	}
	return strings.ToLower(s) == s
}
