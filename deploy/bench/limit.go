package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/bench/receiver"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/sandbox/api"
	"golang.org/x/sync/errgroup"
)

const (
	// published is Attentive's limit of the endpoint, lowered what a header says in
	// the middle of a run.
	published, lowered = 150, 100
	// usedGoal is from DESIGN's numbers to reach: the share of the limit, in percent.
	usedGoal = 99.0
	// limitSpan is how long the use of a limit is measured.
	limitSpan = 30 * time.Second
	// limitSettles is how long a changed limit or owner takes to show.
	limitSettles = 2 * time.Second
)

// custom measures how much of the limit of POST /v1/attributes/custom is used
// under backlog, as calls arrive: while the owner changes, while the limit is
// lowered, and after a crash.
func custom(ctx context.Context, dir string, report func(result)) error {
	program, err := process.Build(ctx, dir, "./attributes-worker/cmd/attributes-worker")
	if err != nil {
		return err
	}
	cfg := fleetConfig{program: program, destination: account.Attributes, replicas: 2, lease: shortLease, brokers: 1}
	return withFleet(ctx, dir, cfg, func(ctx context.Context, f *fleet) error {
		e, err := newExercise(ctx, f)
		if err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		feeding, stop := context.WithCancel(ctx)
		g.Go(func() error { return e.feed.keep(feeding, load{waiting: 4 * published}) })
		g.Go(func() error {
			defer stop()
			for _, measure := range []func(context.Context, *exercise, func(result)) error{limitHandedOver, limitLowered, limitAfterCrash} {
				if err := measure(ctx, e, report); err != nil {
					return err
				}
			}
			return nil
		})
		if err := g.Wait(); err != nil {
			return err
		}
		return judgeCalls(context.WithoutCancel(ctx), e)
	})
}

// limitHandedOver stops the owner in the middle of the span.
func limitHandedOver(ctx context.Context, e *exercise, report func(result)) error {
	fmt.Fprintln(os.Stderr, "custom: a graceful takeover in the middle")
	owner, err := e.working(ctx)
	if err != nil {
		return err
	}
	if err := backoff.Sleep(ctx, limitSettles); err != nil {
		return err
	}
	refused, err := e.refused(ctx)
	if err != nil {
		return err
	}
	from := time.Now()
	err = errors.Join(backoff.Sleep(ctx, limitSpan/2), owner.Ask(), backoff.Sleep(ctx, limitSpan/2))
	if err != nil {
		return err
	}
	calls := e.during(from, time.Now())
	report(used("custom/takeover, limit used", calls, published).atLeast(usedGoal))
	report(counted("custom/takeover, most in a second", float64(peak(calls)), "calls").atMost(published))
	after, err := e.refused(ctx)
	if err != nil {
		return err
	}
	report(counted("custom/takeover, refused", float64(after-refused), "calls").atMost(0))
	if err := owner.Wait(); err != nil {
		return err
	}
	return e.replace(ctx, owner)
}

// limitLowered has the server state a lower limit with its answers.
func limitLowered(ctx context.Context, e *exercise, report func(result)) error {
	fmt.Fprintf(os.Stderr, "custom: a header lowers the limit to %d\n", lowered)
	before, err := e.refused(ctx)
	if err != nil {
		return err
	}
	if err := e.limit(ctx, lowered); err != nil {
		return err
	}
	if err := backoff.Sleep(ctx, limitSettles); err != nil {
		return err
	}
	at, err := e.refused(ctx)
	if err != nil {
		return err
	}
	from := time.Now()
	if err := backoff.Sleep(ctx, limitSpan/2); err != nil {
		return err
	}
	calls := e.during(from, time.Now())
	after, err := e.refused(ctx)
	if err != nil {
		return err
	}
	report(used("custom/lowered to 100, limit used", calls, lowered).atLeast(usedGoal))
	report(counted("custom/lowered to 100, most in a second", float64(peak(calls)), "calls").atMost(lowered))
	report(counted("custom/lowered to 100, refused while it falls", float64(at-before), "calls"))
	report(counted("custom/lowered to 100, refused after that", float64(after-at), "calls").atMost(0))
	return e.limit(ctx, published)
}

// limitAfterCrash kills the owner.
func limitAfterCrash(ctx context.Context, e *exercise, report func(result)) error {
	fmt.Fprintln(os.Stderr, "custom: the owner is killed")
	if err := backoff.Sleep(ctx, limitSettles); err != nil {
		return err
	}
	from := time.Now()
	t, err := crash(ctx, e)
	if err != nil {
		return err
	}
	if err := backoff.Sleep(ctx, limitSpan/2); err != nil {
		return err
	}
	to := time.Now()
	report(timed(fmt.Sprintf("custom/crash, without a call (lease %v)", e.lease), []time.Duration{t.first.Sub(t.last)}))
	report(used("custom/crash, limit used after the gap", e.during(t.first.Add(limitSettles), to), published).atLeast(usedGoal))
	report(counted("custom/crash, most in a second", float64(peak(e.during(from, to))), "calls").atMost(published))
	return nil
}

// during returns what has arrived between two moments.
func (e *exercise) during(from, to time.Time) (calls []receiver.Arrival) {
	for _, a := range e.arrivals.All() {
		if !a.At.Before(from) && a.At.Before(to) {
			calls = append(calls, a)
		}
	}
	return calls
}

// used is the share of the limit that calls use between the first and the last.
func used(name string, calls []receiver.Arrival, limit int) result {
	if len(calls) < 2 {
		return counted(name, 0, "%")
	}
	took := calls[len(calls)-1].At.Sub(calls[0].At)
	return counted(name, 100*float64(len(calls)-1)/(float64(limit)*took.Seconds()), "%")
}

// refused counts the calls that were answered 429.
func (e *exercise) refused(ctx context.Context) (n int, err error) {
	body, err := get(ctx, e.receiver.Control+"/_sandbox/arrivals/summary")
	if err != nil {
		return 0, err
	}
	var all []api.Traffic
	if err := json.Unmarshal(body, &all); err != nil {
		return 0, fmt.Errorf("arrivals of the sandbox: %w", err)
	}
	for _, t := range all {
		n += t.ByStatus[http.StatusTooManyRequests]
	}
	return n, nil
}

// limit sets the limit that the receiver keeps and states.
func (e *exercise) limit(ctx context.Context, perSecond int) error {
	body, err := json.Marshal(map[api.Endpoint]int{api.SetAttributes: perSecond})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, e.receiver.Control+"/_sandbox/limits", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("set the limit of the receiver: %s", resp.Status)
	}
	return nil
}
