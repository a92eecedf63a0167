package attentive

import (
	"cmp"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// detailBytes bounds what of an answer's body goes into an error.
const detailBytes = 300

// gap stands for what was taken out.
const gap = "[...]"

var (
	emailLike = regexp.MustCompile(`[^\s"'<>(),;:]+@[^\s"'<>(),;:]+`)
	// phoneLike is a run of seven or more digits with the usual separators.
	phoneLike = regexp.MustCompile(`\+?\d(?:[\s().-]*\d){6,}`)
)

// scrub returns the text of an answer's body as one short line without the
// request's secrets and without whatever looks like a phone number or an e-mail
// address.
func scrub(body []byte, secrets []string) string {
	// An answer may spell a character as an escape: decoded and encoded once
	// more, it is spelt as the secrets are.
	var parsed any
	if json.Unmarshal(body, &parsed) == nil {
		if plain, err := encode(parsed); err == nil {
			body = plain
		}
	}
	text := hide(strings.ToValidUTF8(string(body), gap), secrets)
	text = emailLike.ReplaceAllLiteralString(text, gap)
	text = phoneLike.ReplaceAllLiteralString(text, gap)
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > detailBytes {
		text = strings.ToValidUTF8(text[:detailBytes], "")
	}
	return text
}

// shortest is how many bytes a secret must have to be taken out wherever it stands,
// in the middle of a word too: the id "4" would leave nothing of "status 404".
const shortest = 3

// hide takes the secrets out of text, in each spelling in which somebody may
// repeat them. The longest go first, so that none is left in halves; those of one
// or two letters or digits only where they stand alone.
func hide(text string, secrets []string) string {
	var spellings []string
	for _, s := range secrets {
		if s == "" || len(s) > len(text) {
			continue
		}
		spellings = append(spellings, s, strings.ToLower(s), strings.ToUpper(s), url.QueryEscape(s), url.PathEscape(s))
		if quoted, err := encode(s); err == nil {
			spellings = append(spellings, string(quoted[1:len(quoted)-1]))
		}
	}
	slices.SortFunc(spellings, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	var pairs, words []string
	for _, s := range slices.Compact(spellings) {
		if len(s) < shortest && !strings.ContainsFunc(s, outside) {
			words = append(words, s)
		} else {
			pairs = append(pairs, s, gap)
		}
	}
	return hideWords(strings.NewReplacer(pairs...).Replace(text), words)
}

// outside reports whether r is no part of a word.
func outside(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }

// hideWords takes the words out of text that are in the list.
func hideWords(text string, words []string) string {
	if len(words) == 0 {
		return text
	}
	var b strings.Builder
	for rest := text; rest != ""; {
		end := strings.IndexFunc(rest, outside)
		if end < 0 {
			end = len(rest)
		}
		if word := rest[:end]; slices.Contains(words, word) {
			b.WriteString(gap)
		} else {
			b.WriteString(word)
		}
		_, size := utf8.DecodeRuneInString(rest[end:])
		b.WriteString(rest[end : end+size])
		rest = rest[end+size:]
	}
	return b.String()
}

// secretsOf returns the identifiers that an answer must not bring into an error.
func secretsOf(u User, x ExternalIDs) []string {
	secrets := []string{u.Phone, strings.TrimPrefix(u.Phone, "+"), u.Email, x.ClientUserID, x.ShopifyID, x.KlaviyoID}
	for _, value := range x.Custom {
		secrets = append(secrets, value)
	}
	return secrets
}

// valuesOf returns the attribute values that may tell who somebody is. Shorter
// ones do not, and would turn an answer into a row of gaps.
func valuesOf(values map[string]any) []string {
	var secrets []string
	for _, value := range values {
		var s string
		switch v := value.(type) {
		case string:
			s = v
		case float64:
			s = strconv.FormatFloat(v, 'f', -1, 64)
		}
		if len(s) >= 3 {
			secrets = append(secrets, s)
		}
	}
	return secrets
}
