package attentive

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// externalIDs is how ExternalIDs travel.
type externalIDs struct {
	ClientUserID string     `json:"clientUserId,omitempty"`
	ShopifyID    string     `json:"shopifyId,omitempty"`
	KlaviyoID    string     `json:"klaviyoId,omitempty"`
	Custom       []customID `json:"customIdentifiers,omitempty"`
}

type customID struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (e *externalIDs) empty() bool {
	return e.ClientUserID == "" && e.ShopifyID == "" && e.KlaviyoID == "" && len(e.Custom) == 0
}

// wire returns nil when nothing is set.
func (x ExternalIDs) wire() *externalIDs {
	e := &externalIDs{ClientUserID: x.ClientUserID, ShopifyID: x.ShopifyID, KlaviyoID: x.KlaviyoID}
	for name, value := range x.Custom {
		if name != "" && value != "" {
			e.Custom = append(e.Custom, customID{name, value})
		}
	}
	if e.empty() {
		return nil
	}
	slices.SortFunc(e.Custom, func(a, b customID) int { return strings.Compare(a.Name, b.Name) })
	return e
}

// checkValues refuses what the API has no attribute for: arrays are answered
// with 400, null would say something that no publisher meant.
func checkValues(values map[string]any) error {
	if len(values) == 0 {
		return errors.New("no attributes")
	}
	for name, value := range values {
		if n := utf8.RuneCountInString(name); n < 1 || n > 200 {
			return fmt.Errorf("attribute name of %d characters: want 1 to 200", n)
		}
		switch v := value.(type) {
		case string, bool:
		case float64:
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return fmt.Errorf("attribute %q: not a finite number", name)
			}
		default:
			return fmt.Errorf("attribute %q: %T is not a string, a number or a boolean", name, value)
		}
	}
	return nil
}

// encode returns body as JSON, with <, > and & as they are.
func encode(body any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}
