// Package dispatch sends the profiles of an account's destinations to the API:
// in order for each subscriber, within the limit of each endpoint, while this
// process owns the account.
//
// A profile comes from its queue into the lanes of its subscriber. When it is
// first there, the call is made: past the barriers of account and endpoint, in
// its turn at the endpoint's limiter, and with enough lease left for the call's
// time-out, checked again before the first byte is written. The message is
// acknowledged after an answer that means success, or after its dead letter is
// stored; only when the broker has confirmed that may the subscriber's next
// profile start. A call that failed is made again in its place.
//
// What is broken is not the profile's fault: while the account, the endpoint, the
// consent ledger or the stream of dead letters is unusable, or the destination's
// settings are refused for everybody, profiles wait, which counts no attempt, and
// one of them finds out when it is over.
package dispatch

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"attentive.internal/attributes-worker/internal/attentive"
	"attentive.internal/attributes-worker/internal/lane"
	"attentive.internal/attributes-worker/internal/limiter"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/worker"
)

// connections returns how many are kept open: as many as there may be calls under way
// for a destination. One that is closed because others wait is soon opened again.
func connections() (n int) {
	for _, k := range []contract.Kind{contract.Attributes, contract.Subscribe, contract.Unsubscribe} {
		n += slots(k)
	}
	return n
}

// Account is what the destinations of one account share.
type Account struct {
	client     *attentive.Client // past the limiters
	tenure     *owner.Tenure
	timeout    time.Duration // of a call
	barrier    *barrier
	company    *company
	endpoints  map[metrics.Endpoint]*endpoint
	credential string
	metrics    *metrics.Metrics
	// people keeps two consent calls for one person apart, whichever kind and
	// destination they are of.
	people *lane.Lanes
}

// endpoint is what the calls that have one limit share.
type endpoint struct {
	name    metrics.Endpoint
	limiter *limiter.Limiter
	barrier *barrier
	outage  outage
}

// NewAccount returns what works account a during tenure.
func NewAccount(p worker.Parts, a config.Account, tenure *owner.Tenure) (*Account, error) {
	credential := a.Credentials[0] // all of them log in to the same account
	timeout := p.CallTimeout()
	client, err := attentive.New(attentive.Config{
		BaseURL: credential.API.BaseURL, Key: credential.APIKey, Timeout: timeout, Connections: connections(),
		Fence: tenure.Conn,
	})
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, d := range a.Destinations {
		ids = append(ids, d.ID)
	}
	newBarrier := func(kinds ...contract.Kind) *barrier {
		return &barrier{notice: &notice{destinations: ids, kinds: kinds, metrics: p.Metrics, log: p.Log}}
	}
	acc := &Account{
		client:     client,
		tenure:     tenure,
		timeout:    timeout,
		barrier:    newBarrier(contract.Attributes, contract.Subscribe, contract.Unsubscribe),
		endpoints:  make(map[metrics.Endpoint]*endpoint),
		company:    newCompany(a.Key, newBarrier(contract.Subscribe, contract.Unsubscribe).notice),
		credential: credential.ID,
		metrics:    p.Metrics,
		people:     lane.New(),
	}
	ceilings := a.Ceilings()
	for name, e := range map[metrics.Endpoint]struct {
		kind      contract.Kind
		perSecond int
	}{
		metrics.CustomAttributes: {contract.Attributes, ceilings.Attributes},
		metrics.BulkAttributes:   {contract.Attributes, ceilings.Bulk},
		metrics.BulkStatus:       {contract.Attributes, ceilings.BulkStatus},
		metrics.Subscribe:        {contract.Subscribe, ceilings.Subscribe},
		metrics.Unsubscribe:      {contract.Unsubscribe, ceilings.Unsubscribe},
	} {
		l := limiter.New(e.perSecond)
		l.Tolerate(a.Jitter())
		if tenure.Orphaned() {
			// The owner before did not hand over, but it began no call within the
			// time-out of one before its lease ended, which is over.
			l.Assume(timeout)
		}
		acc.endpoints[name] = &endpoint{name: name, limiter: l, barrier: newBarrier(e.kind)}
	}
	return acc, nil
}

// through returns a client whose requests send their first byte when limit and
// lease allow it.
func (a *Account) through(l *limiter.Limiter, tenure *owner.Tenure) *attentive.Client {
	return a.client.Through(func(ctx context.Context, write func() error) error {
		return l.Do(ctx, func() error {
			if !tenure.Allows(a.timeout) {
				return errLease()
			}
			return write()
		})
	})
}

func errLease() error {
	return fault.Interruptedf("the lease would end before the call's time-out")
}

// passes are the leave to make one call, of the account, of the endpoint and of
// the queue, which is nil for a call that does not send what waits there.
type passes struct{ account, endpoint, queue *pass }

func (p passes) decline() {
	p.endpoint.decline()
	if p.queue != nil {
		p.queue.decline()
	}
}

func (p passes) leave() {
	p.endpoint.leave()
	p.account.leave()
	if p.queue != nil {
		p.queue.leave()
	}
}

// enter returns once neither the account nor the endpoint is blocked, or to
// probe an endpoint that is. The context that it returns ends with ctx and when
// either becomes blocked.
func (a *Account) enter(ctx context.Context, e *endpoint, count counter) (context.Context, passes, error) {
	ctx, account, err := a.barrier.enter(ctx)
	if err != nil {
		return ctx, passes{}, fault.Interruptedf("wait for the account: %w", err)
	}
	if account.probe { // by a call without an effect
		if err := a.probe(ctx, account, count); err != nil {
			account.leave()
			return ctx, passes{}, err
		}
	}
	ctx, of, err := e.barrier.enter(ctx)
	if err != nil {
		account.leave()
		return ctx, passes{}, fault.Interruptedf("wait for the endpoint: %w", err)
	}
	return ctx, passes{account: account, endpoint: of}, nil
}

// probe finds out whether the API takes the key again. Its errors count no
// attempt of the profile that happens to be waiting.
func (a *Account) probe(ctx context.Context, account *pass, count counter) error {
	if _, err := a.me(ctx, account, count); !taken(fault.Of(err)) {
		return fault.Interruptedf("probe the account: %w", err)
	}
	return nil
}

// me asks the API whom the key belongs to, a call without an effect, and tells
// the pass what that shows of the account.
func (a *Account) me(ctx context.Context, account *pass, count counter) (attentive.Account, error) {
	if !a.tenure.Allows(a.timeout) {
		return attentive.Account{}, errLease()
	}
	began := time.Now()
	who, result, err := a.client.Me(ctx)
	count.call(metrics.Me, began, result, err)
	switch f := fault.Of(err); {
	case taken(f):
		account.passed()
	case blocks(f, fault.ScopeAccount):
		account.met(f)
	case f.Class != fault.Interrupted:
		account.failed()
	}
	return who, err
}

// taken reports whether the answer to a call, an error or none, shows that the
// key was taken.
func taken(f *fault.Error) bool {
	return f == nil || f.Class == fault.Permanent || blocks(f, fault.ScopeEndpoint)
}

// blocks reports whether f blocks the scope.
func blocks(f *fault.Error, scope fault.Scope) bool {
	return f != nil && f.Class == fault.Blocked && f.Scope == scope
}

// Run works the account: while work sends, it hands out turns at the endpoints
// and shows their limits. It returns when work has returned after the end of ctx,
// and the next owner may make calls without passing a limit together with us: only
// then may the account be released.
func (a *Account) Run(ctx context.Context, work func(ctx context.Context) error) error {
	defer a.client.Close()
	defer a.barrier.end()
	g, ctx := errgroup.WithContext(ctx)
	for _, e := range a.endpoints {
		defer e.barrier.end()
		g.Go(func() error {
			if err := e.limiter.Run(ctx); ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			for _, e := range a.endpoints {
				a.metrics.LimiterLimit(a.credential, e.name).Set(e.limiter.Limit())
				a.metrics.LimiterUtilization(a.credential, e.name).Set(e.limiter.Utilisation())
			}
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
	})
	g.Go(func() error { return work(ctx) })
	err := g.Wait()
	a.handOver()
	return err
}

// handOver waits until every limiter may be handed over.
func (a *Account) handOver() {
	var endpoints sync.WaitGroup
	for _, e := range a.endpoints {
		endpoints.Go(e.limiter.HandOver)
	}
	endpoints.Wait()
}
