package attentive

import (
	"context"
	"errors"
	"net/http"
	"net/url"
)

// Channel is how a person is reached.
type Channel string

// Channels.
const (
	Text  Channel = "TEXT"
	Email Channel = "EMAIL"
)

// Type is what a subscription is for.
type Type string

// Types of subscriptions that can be entered.
const (
	Marketing     Type = "MARKETING"
	Transactional Type = "TRANSACTIONAL"
)

// User is the person a call is about.
type User struct {
	Phone string `json:"phone,omitempty"` // E.164
	Email string `json:"email,omitempty"`
}

// ExternalIDs are the brand's ids of a person. Empty ones are not sent.
type ExternalIDs struct {
	ClientUserID string
	ShopifyID    string
	KlaviyoID    string
	Custom       map[string]string // value by name
}

// Attributes is the request of [Client.SetAttributes].
type Attributes struct {
	User     User
	External ExternalIDs // of which this call takes ClientUserID and Custom
	// Values by name: strings, booleans and finite numbers (float64). Names
	// keep their case and have 1 to 200 characters.
	Values map[string]any
}

// Subscription is a type and channel combination.
type Subscription struct {
	Type    Type    `json:"type"`
	Channel Channel `json:"channel"`
}

// Subscribe is the request of [Client.Subscribe]. Either SignUpSourceID is set
// or Language, Country and Type are.
type Subscribe struct {
	User           User
	External       ExternalIDs
	SignUpSourceID string
	Language       string // ISO 639-1: en
	Country        string // ISO 3166-1: US
	Type           Type
	SingleOptIn    bool
}

// Unsubscribe is the request of [Client.Unsubscribe]. The call takes no external
// ids. Without Subscriptions it means all of the user's: those of the TEXT
// channel when a phone is set, those of the EMAIL channel when an address is.
type Unsubscribe struct {
	User          User
	Subscriptions []Subscription
	Silent        bool // the person is sent no confirmation
}

// Eligibility says whether a user may be sent messages of a subscription.
type Eligibility struct {
	Subscription
	Eligible bool
}

// Account is what a key belongs to.
type Account struct {
	Application string `json:"applicationName"`
	Company     string `json:"companyName"`
	CompanyID   string `json:"companyId"`
	Domain      string `json:"attentiveDomainName"`
}

// Me returns what the key belongs to: the call that shows whether it is valid.
func (c *Client) Me(ctx context.Context) (Account, Result, error) {
	var account Account
	result, err := c.do(ctx, call{method: http.MethodGet, path: "/v1/me", into: &account})
	return account, result, err
}

// SetAttributes sets attributes of a user. Repeating it is harmless.
func (c *Client) SetAttributes(ctx context.Context, a Attributes) (Result, error) {
	request := call{method: http.MethodPost, path: "/v1/attributes/custom"}
	type user struct {
		User
		External *externalIDs `json:"externalIdentifiers,omitempty"`
	}
	external := a.External.wire()
	if external != nil { // not among the fields that this call documents
		external.ShopifyID, external.KlaviyoID = "", ""
		if external.empty() {
			external = nil
		}
	}
	if a.User == (User{}) && external == nil {
		return Result{}, request.invalid(errors.New("neither phone, e-mail, client user id nor a custom identifier"))
	}
	if err := checkValues(a.Values); err != nil {
		return Result{}, request.invalid(err)
	}
	request.body = struct {
		Properties map[string]any `json:"properties"`
		User       user           `json:"user"`
	}{a.Values, user{a.User, external}}
	request.secrets = append(secretsOf(a.User, a.External), valuesOf(a.Values)...)
	return c.do(ctx, request)
}

// Subscribe opts a user in. An answer 409 means that the user already is, and
// counts as done.
func (c *Client) Subscribe(ctx context.Context, s Subscribe) (Result, error) {
	request := call{method: http.MethodPost, path: "/v1/subscriptions", consent: true, done: http.StatusConflict}
	if s.User == (User{}) {
		return Result{}, request.invalid(errors.New("neither phone nor e-mail"))
	}
	type locale struct {
		Language string `json:"language,omitempty"`
		Country  string `json:"country,omitempty"`
	}
	var where *locale
	if s.Language != "" || s.Country != "" {
		where = &locale{s.Language, s.Country}
	}
	request.body = struct {
		User           User         `json:"user"`
		SignUpSourceID string       `json:"signUpSourceId,omitempty"`
		External       *externalIDs `json:"externalIdentifiers,omitempty"`
		Locale         *locale      `json:"locale,omitempty"`
		Type           Type         `json:"subscriptionType,omitempty"`
		SingleOptIn    bool         `json:"singleOptIn,omitempty"`
	}{s.User, s.SignUpSourceID, s.External.wire(), where, s.Type, s.SingleOptIn}
	request.secrets = secretsOf(s.User, s.External)
	return c.do(ctx, request)
}

// Unsubscribe opts a user out.
func (c *Client) Unsubscribe(ctx context.Context, u Unsubscribe) (Result, error) {
	request := call{method: http.MethodPost, path: "/v1/subscriptions/unsubscribe", consent: true}
	if u.User == (User{}) {
		return Result{}, request.invalid(errors.New("neither phone nor e-mail"))
	}
	type notification struct {
		Disabled bool `json:"disabled"`
	}
	var notify *notification
	if u.Silent {
		notify = &notification{Disabled: true}
	}
	request.body = struct {
		User          User           `json:"user"`
		Subscriptions []Subscription `json:"subscriptions,omitempty"`
		Notification  *notification  `json:"notification,omitempty"`
	}{u.User, u.Subscriptions, notify}
	request.secrets = secretsOf(u.User, ExternalIDs{})
	return c.do(ctx, request)
}

// Subscriptions returns for which subscriptions a user may be sent messages. The
// user is named by phone or by e-mail, not by both. For somebody it does not know
// the API may answer 404: an error, with that status in the Result.
func (c *Client) Subscriptions(ctx context.Context, user User) ([]Eligibility, Result, error) {
	request := call{method: http.MethodGet, path: "/v1/subscriptions", secrets: secretsOf(user, ExternalIDs{})}
	switch {
	case user.Phone != "" && user.Email != "":
		return nil, Result{}, request.invalid(errors.New("both phone and e-mail"))
	case user.Phone != "":
		request.query = url.Values{"phone": {user.Phone}}
	case user.Email != "":
		request.query = url.Values{"email": {user.Email}}
	default:
		return nil, Result{}, request.invalid(errors.New("neither phone nor e-mail"))
	}
	var answer struct {
		Eligibilities []struct {
			Subscription Subscription `json:"subscription"`
			Eligibility  struct {
				Eligible bool `json:"isEligible"`
			} `json:"eligibility"`
		} `json:"subscriptionEligibilities"`
	}
	request.into = &answer
	result, err := c.do(ctx, request)
	if err != nil {
		return nil, result, err
	}
	var list []Eligibility
	for _, e := range answer.Eligibilities {
		list = append(list, Eligibility{e.Subscription, e.Eligibility.Eligible})
	}
	return list, result, nil
}
