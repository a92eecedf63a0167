package api_test

import (
	"slices"
	"testing"

	"attentive.internal/pkg/sandbox/api"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	phone = "+13115552368"
	email = "a@b.co"
)

// answered is what a subscribe or unsubscribe call says of one subscription.
type answered struct {
	Subscription api.Subscription `json:"subscription"`
	Created      string           `json:"subscriptionCreationStatus"`
	Ended        string           `json:"subscriptionUnsubscribeStatus"`
}

// consent sends a subscribe or unsubscribe call that must be accepted and returns the
// statuses as channel/type/status.
func (s *sandbox) consent(endpoint api.Endpoint, body string) []string {
	s.t.Helper()
	r := s.must(202, string(endpoint), body)
	statuses := []string{}
	for _, a := range decode[struct{ SubscriptionResponses []answered }](s.t, r.body).SubscriptionResponses {
		statuses = append(statuses, a.Subscription.Channel+"/"+a.Subscription.Type+"/"+a.Created+a.Ended)
	}
	return statuses
}

// texts returns the kinds of texts sent so far.
func (s *sandbox) texts() []api.TextKind {
	var kinds []api.TextKind
	for _, m := range s.Outbox() {
		kinds = append(kinds, m.Kind)
	}
	return kinds
}

// eligible returns what GET /v1/subscriptions says, as channel/type/bool.
func (s *sandbox) eligible(query string) map[string]bool {
	s.t.Helper()
	r := s.must(200, "GET /v1/subscriptions?"+query, "")
	eligible := make(map[string]bool)
	for _, e := range decode[struct {
		SubscriptionEligibilities []struct {
			Subscription api.Subscription
			Eligibility  struct{ IsEligible bool }
		}
	}](s.t, r.body).SubscriptionEligibilities {
		eligible[e.Subscription.Channel+"/"+e.Subscription.Type] = e.Eligibility.IsEligible
	}
	return eligible
}

func diff[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestDoubleOptIn(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	const subscribe = `{"user":{"phone":"+13115552368"},"signUpSourceId":"100"}`
	const query = "phone=%2B13115552368"

	diff(t, "first", []string{"TEXT/MARKETING/NEWLY_CREATED"}, s.consent(api.Subscribe, subscribe))
	diff(t, "pending looks like nothing", map[string]bool{}, s.eligible(query))
	diff(t, "status", api.Pending, s.subscriber(phone).Status(phone, api.Marketing))

	diff(t, "again while pending", []string{"TEXT/MARKETING/NEWLY_CREATED"}, s.consent(api.Subscribe, subscribe))
	if n, err := s.Confirm(phone); n != 1 || err != nil {
		t.Errorf("Confirm = %d, %v, want 1", n, err)
	}
	if n, err := s.Confirm(phone); n != 0 || err != nil {
		t.Errorf("second Confirm = %d, %v, want 0", n, err)
	}
	diff(t, "eligible", map[string]bool{"TEXT/MARKETING": true}, s.eligible(query))
	diff(t, "once more", []string{"TEXT/MARKETING/PREVIOUSLY_CREATED"}, s.consent(api.Subscribe, subscribe))
	diff(t, "texts", []api.TextKind{api.ReplyY, api.ReplyY, api.Welcome, api.AlreadySubscribed}, s.texts())
	if n, err := s.Confirm("+19999999999"); n != 0 || err != nil {
		t.Errorf("Confirm of a stranger = %d, %v, want 0", n, err)
	}
}

func TestSingleOptInAndAutoConfirm(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	s.consent(api.Subscribe, `{"user":{"phone":"+13115552368"},"signUpSourceId":"100","singleOptIn":true}`)
	diff(t, "single opt-in", []api.TextKind{api.Welcome}, s.texts())
	diff(t, "status", api.Active, s.subscriber(phone).Status(phone, api.Marketing))

	cfg := config(t)
	cfg.AutoConfirm = true
	s = start(t, cfg)
	s.consent(api.Subscribe, `{"user":{"phone":"+13115552368"},"signUpSourceId":"100"}`)
	diff(t, "auto-confirm", []api.TextKind{api.ReplyY, api.Welcome}, s.texts())
	diff(t, "status", api.Active, s.subscriber(phone).Status(phone, api.Marketing))
}

func TestUnsubscribe(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	const both = `{"user":{"phone":"+13115552368","email":"A@B.co"},"signUpSourceId":"100","singleOptIn":true}`
	diff(t, "subscribed", []string{"TEXT/MARKETING/NEWLY_CREATED", "EMAIL/MARKETING/NEWLY_CREATED"}, s.consent(api.Subscribe, both))
	s.consent(api.Subscribe, `{"user":{"phone":"+13115552368"},"signUpSourceId":"300","singleOptIn":true}`)

	diff(t, "a phone ends texts only", []string{"TEXT/MARKETING/NEWLY_UNSUBSCRIBED", "TEXT/TRANSACTIONAL/NEWLY_UNSUBSCRIBED"},
		s.consent(api.Unsubscribe, `{"user":{"phone":"+13115552368"}}`))
	diff(t, "e-mail stays", map[string]bool{"TEXT/MARKETING": false, "TEXT/TRANSACTIONAL": false, "EMAIL/MARKETING": true}, s.eligible("email=a@b.co"))
	diff(t, "repeated", []string{"TEXT/MARKETING/PREVIOUSLY_UNSUBSCRIBED", "TEXT/TRANSACTIONAL/PREVIOUSLY_UNSUBSCRIBED"},
		s.consent(api.Unsubscribe, `{"user":{"phone":"+13115552368"}}`))
	diff(t, "a channel the user object does not reach", []string{},
		s.consent(api.Unsubscribe, `{"user":{"phone":"+13115552368"},"subscriptions":[{"type":"MARKETING","channel":"EMAIL"}]}`))
	diff(t, "an address ends e-mail only", []string{"EMAIL/MARKETING/NEWLY_UNSUBSCRIBED"},
		s.consent(api.Unsubscribe, `{"user":{"email":"a@b.co"}}`))
	diff(t, "one text a call, also for the repeated one",
		[]api.TextKind{api.Welcome, api.Welcome, api.Goodbye, api.Goodbye}, s.texts())
	diff(t, "counted per person", map[api.TextKind]int{api.Welcome: 2, api.Goodbye: 2}, s.subscriber(email).Texts)

	diff(t, "subscribing again", []string{"TEXT/MARKETING/NEWLY_CREATED", "EMAIL/MARKETING/NEWLY_CREATED"}, s.consent(api.Subscribe, both))
	diff(t, "silently, one type", []string{"TEXT/MARKETING/NEWLY_UNSUBSCRIBED"},
		s.consent(api.Unsubscribe, `{"user":{"phone":"+13115552368"},"subscriptions":[{"type":"MARKETING","channel":"TEXT"}],"notification":{"disabled":true}}`))
	if got := s.subscriber(phone).Texts[api.Goodbye]; got != 2 {
		t.Errorf("a silent unsubscribe sent a text: %d, want 2", got)
	}

	diff(t, "a stranger", []string{"TEXT/MARKETING/NEWLY_UNSUBSCRIBED"}, s.consent(api.Unsubscribe, `{"user":{"phone":"+13115550000"}}`))
	want := map[string]int{
		"TEXT/MARKETING/unsubscribed": 2, "TEXT/TRANSACTIONAL/unsubscribed": 1, "EMAIL/MARKETING/active": 1,
	}
	diff(t, "stats", want, s.Stats().Subscriptions)
	diff(t, "active contacts", []string{email}, slices.Collect(s.ActiveContacts()))
}

func TestIdentifiersOfOneCallAreOnePerson(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	set := func(user, properties string) {
		t.Helper()
		s.must(200, string(api.SetAttributes), `{"user":`+user+`,"properties":`+properties+`}`)
	}
	set(`{"phone":"+13115552368"}`, `{"old":"phone","both":"phone"}`)
	set(`{"email":"A@b.co"}`, `{"both":"email","new":"email"}`)
	s.consent(api.Subscribe, `{"user":{"email":"a@b.co"},"signUpSourceId":"100"}`)
	if n := s.Stats().Subscribers; n != 2 {
		t.Fatalf("%d subscribers before the call that joins them, want 2", n)
	}
	set(`{"email":"a@B.co","phone":"+13115552368","externalIdentifiers":{"clientUserId":"7"}}`, `{"last":"1"}`)
	want := api.Subscriber{
		ID: 1,
		Identities: []api.Identity{
			{Kind: "phone", Value: phone}, {Kind: "email", Value: email}, {Kind: "client_user_id", Value: "7"},
		},
		Attributes: map[string]string{"old": "phone", "both": "email", "new": "email", "last": "1"},
		Subscriptions: []api.SubscriberConsent{
			{Subscription: api.Subscription{Type: "MARKETING", Channel: "EMAIL"}, Contact: email, Status: api.Active},
		},
	}
	ignored := cmpopts.IgnoreTypes(s.Stats().Updated)
	for _, identifier := range []string{phone, "A@B.CO", "7"} {
		if d := cmp.Diff(want, s.subscriber(identifier), ignored); d != "" {
			t.Errorf("subscriber %q (-want +got):\n%s", identifier, d)
		}
	}
	if n := s.Stats().Subscribers; n != 1 {
		t.Errorf("%d subscribers, want 1", n)
	}
	set(`{"externalIdentifiers":{"clientUserId":"7"}}`, `{"last":"2"}`)
	if got := s.subscriber(phone).Attributes["last"]; got != "2" {
		t.Errorf("set by external id: %q, want 2", got)
	}
	r := s.must(200, "GET /v1/attributes/custom?email=A@b.co", "")
	if got := len(decode[[]map[string]string](t, r.body)); got != 4 {
		t.Errorf("GET by e-mail returned %d attributes, want 4: %s", got, r.body)
	}
}

func TestSubscribersArePaged(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	for _, p := range []string{"+13115550001", "+13115550002", "+13115550003"} {
		s.must(200, string(api.SetAttributes), `{"user":{"phone":"`+p+`"},"properties":{}}`)
	}
	// The second and the third become one: a page has no hole.
	s.must(200, string(api.SetAttributes), `{"user":{"phone":"+13115550002","externalIdentifiers":{"clientUserId":"7"}},"properties":{}}`)
	s.must(200, string(api.SetAttributes), `{"user":{"phone":"+13115550003","externalIdentifiers":{"clientUserId":"7"}},"properties":{}}`)
	s.must(200, string(api.SetAttributes), `{"user":{"phone":"+13115550004"},"properties":{}}`)
	var got []uint64
	for after := uint64(0); ; {
		page := s.Subscribers(after, 1)
		if len(page) == 0 {
			break
		}
		after = page[0].ID
		got = append(got, after)
	}
	diff(t, "ids", []uint64{1, 2, 4}, got)
	diff(t, "past the end", []api.Subscriber{}, s.Subscribers(99, 10))
}

func TestStateSurvivesWithoutAClose(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.AutoConfirm = true
	s := start(t, cfg)
	s.must(200, string(api.SetAttributes), `{"user":{"phone":"+13115552368"},"properties":{"age":"24"}}`)
	s.must(200, string(api.SetAttributes), `{"user":{"email":"a@b.co"},"properties":{"name":"x"}}`)
	s.consent(api.Subscribe, `{"user":{"phone":"+13115552368","email":"a@b.co"},"signUpSourceId":"100"}`)
	s.consent(api.Unsubscribe, `{"user":{"email":"a@b.co"}}`)
	s.consent(api.Subscribe, `{"user":{"phone":"+13115550001"},"signUpSourceId":"100","singleOptIn":true}`)

	// The setting of the second process does not change what happened in the first.
	cfg.AutoConfirm = false
	again := start(t, cfg)
	diff(t, "subscribers", s.Subscribers(0, 100), again.Subscribers(0, 100))
	diff(t, "outbox", s.Outbox(), again.Outbox())
	diff(t, "stats", s.Stats(), again.Stats())
	again.must(400, string(api.SetAttributes), `{"user":{"phone":"+13115552368"},"properties":{"age":"x"}}`)
}
