package dispatch

import (
	"context"
	"errors"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/consent"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
)

// company is whose people an account's key reaches. Consent is remembered by
// company and not by account, because a new key, another credential or a second
// one reach the same people.
//
// The API tells it, once for each account: the consent ledger remembers it, so
// that nothing has to be asked at the start of every tenure and an outage of
// GET /v1/me stops nobody. Until it is known consent waits, because whoever is
// not known by company may be texted twice; attributes do not.
type company struct {
	account string
	// turn holds a value while somebody uses what follows.
	turn   chan struct{}
	notice *notice
	id     string // empty: not known
}

func newCompany(account string, n *notice) *company {
	return &company{account: account, turn: make(chan struct{}, 1), notice: n}
}

// whose returns the company, once it is known. Of those who wait for it one asks.
// It fails, Interrupted, when ctx ends.
func (a *Account) whose(ctx context.Context, l *consent.Ledger, count counter) (string, error) {
	c := a.company
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return "", fault.Interruptedf("wait for the company of the account: %w", context.Cause(ctx))
	}
	for n := 1; c.id == ""; n++ {
		err := a.learn(ctx, l, count)
		if err == nil {
			c.notice.clear()
			break
		}
		f := fault.Of(err)
		if f.Class == fault.Blocked && f.Scope != fault.ScopeAccount && c.notice.now != (metrics.Block{Scope: f.Scope, Reason: f.Reason}) {
			c.notice.show(f) // of a blocked account its barrier tells
		}
		if err := backoff.Sleep(ctx, probes().Wait(n, f.Wait)); err != nil {
			c.notice.withdraw()
			return "", fault.Interruptedf("learn the company of the account: %w", err)
		}
	}
	return c.id, nil
}

// learn tries to find out the company: from the ledger, else from the API. It is
// called by who has the turn.
func (a *Account) learn(ctx context.Context, l *consent.Ledger, count counter) error {
	id, err := a.recall(ctx, l)
	if err != nil || id != "" {
		a.company.id = id
		return err
	}
	entered, account, err := a.barrier.enter(ctx)
	if err != nil {
		return fault.Interruptedf("wait for the account: %w", err)
	}
	defer account.leave()
	who, err := a.me(entered, account, count)
	switch f := fault.Of(err); {
	case f == nil && who.CompanyID != "":
	case f == nil:
		return unknownCompany(fault.ScopeMissing, errors.New("GET /v1/me tells no companyId"))
	case f.Class == fault.Permanent:
		return unknownCompany(fault.Misconfigured, err)
	case blocks(f, fault.ScopeEndpoint):
		return unknownCompany(fault.ScopeMissing, err)
	case f.Class == fault.Retryable:
		blocked := fault.Of(unknownCompany(fault.Unreachable, err))
		blocked.Wait = f.Wait
		return blocked
	default:
		return err
	}
	err = a.askLedger(ctx, func(ctx context.Context) error { return l.Remember(ctx, a.company.account, who.CompanyID) })
	if err == nil {
		a.company.id = who.CompanyID
	}
	return err
}

// recall returns the company that the ledger remembers, or "".
func (a *Account) recall(ctx context.Context, l *consent.Ledger) (id string, err error) {
	err = a.askLedger(ctx, func(ctx context.Context) (err error) {
		id, err = l.Company(ctx, a.company.account)
		return err
	})
	return id, err
}

// unknownCompany says why it is not known whose people they are, and what that
// means.
func unknownCompany(reason fault.Reason, err error) error {
	return fault.Blockedf(fault.ScopeEndpoint, reason, "nobody is subscribed or unsubscribed before it is known which company the API key belongs to, "+
		"so that nobody is texted twice; use a key that may call GET /v1/me: %w", err)
}

// askLedger does one thing with the consent ledger, within the time-out of a
// call. While the ledger cannot be read or written nobody is sent anything; that
// is not the profile's fault.
func (a *Account) askLedger(ctx context.Context, do func(context.Context) error) error {
	timed, cancel := context.WithTimeoutCause(ctx, a.timeout, errors.New("the broker did not answer in time"))
	defer cancel()
	if err := do(timed); err != nil {
		return fault.Blockedf(fault.ScopeDestination, fault.BrokerUnavailable, "consent ledger: %w", err)
	}
	return nil
}
