package dispatch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/consent"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
)

// Consents sends the subscribes and unsubscribes of one destination: those that
// change something, and each at most once.
type Consents struct {
	account     *Account
	destination config.Destination
	ledger      *consent.Ledger
}

// NewConsents returns what sends both kinds for one destination of the account.
func NewConsents(a *Account, d config.Destination, l *consent.Ledger) *Consents {
	return &Consents{account: a, destination: d, ledger: l}
}

// callState is what is known of the call of one consent profile, beyond what
// the ledger says: whose writes can fail.
type callState uint8

const (
	notMade callState = iota // or without effect
	unanswered
	answered
)

// Ready implements Sender: it has to be known whose people they are.
func (c *Consents) Ready(ctx context.Context, p *Profile) (err error) {
	p.company, err = c.account.whose(ctx, c.ledger, counter{c.account.metrics, c.destination.ID})
	return err
}

// Due implements Sender.
func (c *Consents) Due(ctx context.Context, p *Profile) (bool, error) {
	r := c.request(p)
	if p.call == answered { // and not entered yet
		return false, c.accept(ctx, p)
	}
	var decision consent.Decision
	err := c.account.askLedger(ctx, func(ctx context.Context) (err error) {
		decision, err = c.ledger.Look(ctx, r)
		return err
	})
	if err != nil {
		return false, err
	}
	switch {
	case decision == consent.Unknown:
		p.call = unanswered
		err = c.settled(ctx, r)
	case decision == consent.Send && r.Operation == consent.Subscribe:
		if err = c.admit(p); err == nil {
			err = c.textable(p)
		}
	}
	if err != nil {
		return false, err
	}
	return c.goesOn(p, decision)
}

// admit fails, Permanent, when a subscribe must not be sent.
func (c *Consents) admit(p *Profile) error {
	settings := c.destination.Attributes
	if settings.SignUp == (config.SignUp{}) {
		return fault.Permanentf(fault.InvalidProfile, "destination %s has no sign-up unit: set sign_up_unit, or locale and subscription type", c.destination.ID)
	}
	if age := time.Since(p.Published); age > settings.SubscribeMaxAge {
		return fault.Permanentf(fault.StaleConsent, "the subscribe was published on %s, more than subscribe_max_age (%v) ago",
			p.Published.UTC().Format(time.RFC3339), settings.SubscribeMaxAge)
	}
	return nil
}

// textable fails, Blocked, while a subscribe would text a person outside the hours
// in which that is allowed.
func (c *Consents) textable(p *Profile) error {
	hours := c.destination.Attributes.TextingHours
	wait := hours.Until(time.Now())
	if wait <= 0 || c.user(p).Phone == "" {
		return nil
	}
	return &fault.Error{
		Class: fault.Blocked, Scope: fault.ScopeDestination, Reason: fault.TextingHours, Wait: wait,
		Err: fmt.Errorf("subscribes wait for the texting_hours, until %s", time.Now().Add(wait).In(hours.Zone).Format(time.RFC3339)),
	}
}

// goesOn reports whether a decision leaves anything to be done. It fails,
// Interrupted, when that cannot be said yet.
func (c *Consents) goesOn(p *Profile, decision consent.Decision) (bool, error) {
	kind := contract.KindOf(p.Profile)
	switch decision {
	case consent.Superseded:
		c.account.metrics.ProfilesSkipped(kind, c.destination.ID, metrics.Superseded).Inc()
		return false, nil
	case consent.Unchanged:
		c.account.metrics.ProfilesSkipped(kind, c.destination.ID, metrics.Unchanged).Inc()
		return false, nil
	case consent.Busy:
		return false, fault.Interruptedf("another operation of the person is not settled")
	}
	return true, nil
}

// Send implements Sender.
func (c *Consents) Send(ctx context.Context, call *Call, p *Profile) error {
	r := c.request(p)
	turn := c.account.people.Enter(r.Person.Channel + ":" + r.Person.Identifier)
	defer turn.Done()
	if err := turn.Wait(ctx); err != nil {
		return fault.Interruptedf("wait for the person's other call: %w", err)
	}
	if r.Operation == consent.Subscribe && p.call == notMade { // the hours may have ended while it waited
		if err := c.textable(p); err != nil {
			return err
		}
	}
	var decision consent.Decision
	err := c.account.askLedger(ctx, func(ctx context.Context) (err error) {
		decision, err = c.ledger.Begin(ctx, r)
		return err
	})
	if err != nil {
		return err
	}
	if decision == consent.Unknown {
		p.call = unanswered
		return c.resolve(ctx, call, p)
	}
	if on, err := c.goesOn(p, decision); err != nil || !on {
		return err
	}
	if err := c.make(ctx, call, p); err != nil {
		return err
	}
	return c.accept(ctx, p)
}

// make makes the one call that p asks for, for which the intent is stored. An
// error that means that there was no effect has taken the intent back.
func (c *Consents) make(ctx context.Context, call *Call, p *Profile) error {
	p.call = unanswered
	var err error
	if u := p.GetUnsubscribe(); u != nil {
		err = c.unsubscribe(ctx, call, p, u.GetSilent())
	} else {
		err = c.subscribe(ctx, call, p)
	}
	switch {
	case err == nil:
		p.call = answered
		return nil
	case !attentive.OutcomeKnown(err):
		p.log.Warn("call ended without an answer: its outcome will be looked up", "err", err)
		return c.later(c.destination.Attributes.UnknownSettle, err)
	}
	return c.takeBack(ctx, p, err)
}

// takeBack takes the intent of p back, whose call had no effect because of err, which
// it returns.
func (c *Consents) takeBack(ctx context.Context, p *Profile, err error) error {
	p.call = notMade
	failed := c.account.askLedger(ctx, func(ctx context.Context) error { return c.ledger.Abandon(ctx, c.request(p)) })
	if failed != nil {
		return failed // the call is made again: that it was refused does no harm
	}
	return err
}

func (c *Consents) subscribe(ctx context.Context, call *Call, p *Profile) error {
	settings := c.destination.Attributes
	s := attentive.Subscribe{
		User:           c.user(p),
		External:       external(p.GetIdentifiers()),
		SignUpSourceID: settings.SignUp.Unit,
		SingleOptIn:    settings.SingleOptIn,
	}
	if s.SignUpSourceID == "" {
		s.Language, s.Country, s.Type = settings.SignUp.Language, settings.SignUp.Country, attentive.Type(settings.SignUp.SubscriptionType)
	}
	return call.Do(metrics.Subscribe, func(client *attentive.Client) (attentive.Result, error) {
		return client.Subscribe(ctx, s)
	})
}

func (c *Consents) unsubscribe(ctx context.Context, call *Call, p *Profile, silent bool) error { //nolint:revive // silent is the API's own field
	person := c.request(p).Person
	return call.Do(metrics.Unsubscribe, func(client *attentive.Client) (attentive.Result, error) {
		return client.Unsubscribe(ctx, attentive.Unsubscribe{
			User:          c.user(p),
			Subscriptions: []attentive.Subscription{{Type: attentive.Type(person.Type), Channel: attentive.Channel(person.Channel)}},
			Silent:        silent,
		})
	})
}

// resolve finds out what became of an operation that was begun and never
// answered. A subscribe that Attentive does not show is not repeated, unless an
// operator says so: waiting for the person's reply looks the same as never having
// arrived. An unsubscribe is, silently.
func (c *Consents) resolve(ctx context.Context, call *Call, p *Profile) error {
	r := c.request(p)
	if err := c.settled(ctx, r); err != nil {
		return err
	}
	eligible, err := c.eligible(ctx, call, p)
	if err != nil {
		return err
	}
	if eligible != (r.Operation == consent.Subscribe) {
		if r.Operation == consent.Subscribe {
			return c.again(ctx, call, p)
		}
		if err := c.unsubscribe(ctx, call, p, true); err != nil {
			return err
		}
	}
	p.call = answered
	return c.accept(ctx, p)
}

// again makes the call of a subscribe whose outcome was given up as unknown, when an
// operator has replayed it since, by force.
func (c *Consents) again(ctx context.Context, call *Call, p *Profile) (err error) {
	begun := false
	if p.message.Header.Get(deadletter.HeaderForce) != "" {
		err = c.account.askLedger(ctx, func(ctx context.Context) (err error) {
			begun, err = c.ledger.BeginAgain(ctx, c.request(p))
			return err
		})
	}
	if err != nil {
		return err
	}
	if !begun {
		return fault.Permanentf(fault.OutcomeUnknown, "the subscribe got no answer, and Attentive does not show the person as subscribed: "+
			"it may or may not have texted them; if it has not, replay it with --force")
	}
	if err = c.admit(p); err == nil {
		err = c.textable(p)
	}
	if err != nil {
		return c.takeBack(ctx, p, err)
	}
	if err := c.make(ctx, call, p); err != nil {
		return err
	}
	return c.accept(ctx, p)
}

// settled fails while the call that was made for r may still take effect.
func (c *Consents) settled(ctx context.Context, r consent.Request) error {
	var since time.Time
	err := c.account.askLedger(ctx, func(ctx context.Context) (err error) {
		since, err = c.ledger.Since(ctx, r)
		return err
	})
	if err != nil {
		return err
	}
	if left := c.destination.Attributes.UnknownSettle - time.Since(since); left > 0 {
		return c.later(left, errors.New("the call has not settled"))
	}
	return nil
}

// eligible asks whether the person can be sent messages of the subscription.
func (c *Consents) eligible(ctx context.Context, call *Call, p *Profile) (eligible bool, err error) {
	person := c.request(p).Person
	err = call.Do(metrics.Subscriptions, func(client *attentive.Client) (attentive.Result, error) {
		list, result, err := client.Subscriptions(ctx, c.user(p))
		for _, e := range list {
			if string(e.Type) == person.Type && string(e.Channel) == person.Channel {
				eligible = e.Eligible
			}
		}
		if result.Status == statusNobody {
			err = nil
		}
		return result, err
	})
	return eligible, err
}

// statusNobody answers a question about somebody Attentive does not know.
const statusNobody = 404

// GiveUp implements Sender.
func (c *Consents) GiveUp(ctx context.Context, p *Profile) error {
	end := c.ledger.GiveUp
	switch {
	case p.call == answered, p.company == "": // its end is known; or nothing was begun
		return nil
	case p.call == notMade:
		// Its intent may be stored all the same, when the ledger's answer was lost. Left
		// there, it would be taken for a call that nobody knows the outcome of.
		end = c.ledger.Abandon
	}
	return c.account.askLedger(ctx, func(ctx context.Context) error { return end(ctx, c.request(p)) })
}

// accept records that the profile's call had its effect.
func (c *Consents) accept(ctx context.Context, p *Profile) error {
	return c.account.askLedger(ctx, func(ctx context.Context) error { return c.ledger.Accept(ctx, c.request(p)) })
}

// later is the error of an operation whose outcome can be looked up after wait.
// It counts no attempt.
func (c *Consents) later(wait time.Duration, err error) error {
	return &fault.Error{Class: fault.Interrupted, Wait: wait, Err: fmt.Errorf("outcome is not known yet: %w", err)}
}

// request says what a profile asks for, of whom.
func (c *Consents) request(p *Profile) consent.Request {
	r := consent.Request{Operation: consent.Subscribe, Place: p.Place, Sequence: p.message.Sequence, Published: p.Published, Unsent: p.call == notMade}
	if !p.expanded.IsZero() {
		r.Published, r.Expanded = p.expanded, true
	}
	if p.GetUnsubscribe() != nil {
		r.Operation = consent.Unsubscribe
	}
	u := c.user(p)
	r.Person = consent.Person{Company: p.company, Identifier: u.Phone, Channel: string(attentive.Text), Type: string(attentive.Marketing)}
	if u.Phone == "" {
		r.Person.Identifier, r.Person.Channel = u.Email, string(attentive.Email)
	}
	if t := c.destination.Attributes.SignUp.SubscriptionType; t != "" {
		r.Person.Type = t
	}
	return r
}

// user names the person by one identifier, which decides the channel: an
// operation by phone must not touch e-mail subscriptions, nor the other way.
func (c *Consents) user(p *Profile) attentive.User {
	ids := p.GetIdentifiers()
	if ids.GetPhone() != "" && (c.destination.Attributes.Identifier == config.Phone || ids.GetEmail() == "") {
		return attentive.User{Phone: ids.GetPhone()}
	}
	return attentive.User{Email: ids.GetEmail()}
}
