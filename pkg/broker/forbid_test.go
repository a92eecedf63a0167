package broker_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// member makes a user that the broker knows by its key, with the permissions.
func member(t *testing.T, p *server.Permissions) (_ *server.NkeyUser, seedFile string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return &server.NkeyUser{Nkey: public, Permissions: p}, written(t, "user.nk", string(seed)+"\n")
}

// TestPermissions: a user known by its key alone uses an inbox of its own, and
// is told at once what it may not publish, beside what it may.
func TestPermissions(t *testing.T) {
	t.Parallel()
	allowed, other := contract.JobSubject(contract.Segment, "acme"), contract.JobSubject(contract.Segment, "other")
	administrator, administratorSeed := member(t, nil)
	publisher, publisherSeed := member(t, &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: []string{allowed, "$JS.API.INFO", "$JS.API.STREAM.INFO.*"}},
		Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX_publisher.>"}},
	})
	url := queuetest.StartFor(t, administrator, publisher).URL

	a := queuetest.ConnectAs(t, broker.Options{URL: url, CredentialsFile: administratorSeed})
	if err := a.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	p := queuetest.ConnectAs(t, broker.Options{URL: url, CredentialsFile: publisherSeed, InboxPrefix: "_INBOX_publisher"})
	refused := make(chan error, 1)
	go func() {
		_, err := p.Store(t.Context(), broker.StreamJobs, message(other, "1", 8))
		refused <- err
	}()
	if _, err := p.Store(t.Context(), broker.StreamJobs, message(allowed, "1", 8)); err != nil {
		t.Errorf("the publisher's own destination: %v", err)
	}
	err := <-refused
	if !errors.Is(err, broker.ErrForbidden) || errors.Is(err, broker.ErrUnanswered) || !strings.Contains(err.Error(), other) {
		t.Errorf("another destination: %v, want ErrForbidden and the subject", err)
	}
	pauses, err := p.KeyValue(t.Context(), broker.BucketPauses)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pauses.Get(t.Context(), "acme"); !errors.Is(err, broker.ErrForbidden) || !strings.Contains(err.Error(), "MSG.GET.KV_"+broker.BucketPauses) {
		t.Errorf("read a bucket: %v, want ErrForbidden and the subject", err)
	}
	stream, err := a.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d jobs are stored, want the allowed one", n)
	}
}

// TestEnsureNeedsPermissions: who may not make all that there is to make is told at once.
func TestEnsureNeedsPermissions(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"CREATE", "PURGE", "UPDATE"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			member, seed := member(t, &server.Permissions{
				Publish: &server.SubjectPermission{Allow: []string{"$JS.API.>"}, Deny: []string{"$JS.API.STREAM." + verb + ".>"}},
			})
			c := queuetest.ConnectAs(t, broker.Options{URL: queuetest.StartFor(t, member).URL, CredentialsFile: seed})
			began := time.Now()
			err := c.Ensure(t.Context(), broker.Settings{})
			if !errors.Is(err, broker.ErrForbidden) || !strings.Contains(err.Error(), verb) || time.Since(began) > 8*time.Second {
				t.Errorf("Ensure = %v after %v, want ErrForbidden at once", err, time.Since(began))
			}
		})
	}
}
