package attributesworker_test

import (
	"testing"
	"time"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/sandbox/api"
)

// TestADestinationRemovedForGood: upstream hears of the end of a job whose profiles
// nobody will send, and they are sent all the same once the destination is back.
func TestADestinationRemovedForGood(t *testing.T) {
	t.Parallel()
	const n = 30
	r := newRig(t)
	r.sweepAfter = 2 * time.Second
	r.configure(destination, other)
	if err := r.sandbox.API().RevokeKey(otherKey); err != nil {
		t.Fatal(err)
	}
	r.start()
	job := r.sendTo(other, inline(rows(n, "green")...))
	if e := r.until(other, job, sending); !sending(e) {
		t.Fatalf("the job ended: %v", e)
	}
	r.configure(destination)
	e := r.until(other, job, func(e *attentivev1.JobEvent) bool { return false })
	profiles := e.GetProgress().GetProfilesTotal()
	if e.GetState() != attentivev1.JobState_JOB_STATE_SUCCEEDED || e.GetProgress().GetProfilesDead() != profiles || profiles < n {
		t.Errorf("the job ended as %v, want with all of its profiles dead", e)
	}
	store := deadletter.New(r.conn, "operator")
	var letters []uint64
	for l, err := range store.List(t.Context(), deadletter.Filter{Job: job}) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Reason != fault.UnknownDestination {
			t.Errorf("dead letter %d is there for %s", l.ID, l.Reason)
		}
		letters = append(letters, l.ID)
	}
	if len(letters) != int(profiles) {
		t.Errorf("%d dead letters, want %d", len(letters), profiles)
	}
	r.succeeded(destination, r.sendTo(destination, inline("+14155552671,,,,blue,1")))

	r.configure(destination, other)
	r.write(r.config[:len(r.config)-len("relay.yaml")]+"other.key", "spare-token")
	for _, id := range letters {
		if _, err := store.Replay(t.Context(), id, deadletter.Guarded); err != nil {
			t.Fatal(err)
		}
	}
	r.waitFor(n)
	r.arrived(n, "green")
}

// waitFor waits until n rows have arrived and all texts are sent.
func (r *rig) waitFor(n int) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		there := 0
		for i := range n {
			if s, ok := r.sandbox.API().Subscriber(phone(i)); ok && s.Attributes["points"] != "" && (i%10 > 0 || s.Status(phone(i), api.Marketing) == api.Active) {
				there++
			}
		}
		if there == n {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%d of %d rows have arrived", there, n)
		}
	}
}
