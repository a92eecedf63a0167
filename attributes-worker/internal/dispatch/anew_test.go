package dispatch_test

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/sandbox/api"
)

// TestStreamOfProfilesMadeAnew: what is published there is newer than all before,
// and what waited as a dead letter is not.
func TestStreamOfProfilesMadeAnew(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fault(api.Fault{Endpoint: api.Subscribe, Identifier: phone(1), Status: http.StatusBadRequest, Times: 1})
	running := r.start()
	r.publish(subscribe(phone(1)), subscribe(phone(2)))
	r.drained()
	r.publish(unsubscribe(phone(1)), unsubscribe(phone(2)))
	r.drained()
	running.stop()
	if err := r.conn.JS.DeleteStream(t.Context(), broker.StreamProfiles); err != nil {
		t.Fatal(err)
	}
	if err := r.conn.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	r.start()
	letters := r.letters()
	if len(letters) != 1 {
		t.Fatalf("%d dead letters, want the subscribe that failed", len(letters))
	}
	if _, err := deadletter.New(r.conn, "test").Replay(t.Context(), letters[0].ID, deadletter.Guarded); err != nil {
		t.Fatal(err)
	}
	r.publish(subscribe(phone(2)))
	r.drained()
	r.noLetters()
	if got := r.status(phone(1)); got != api.Unsubscribed {
		t.Errorf("who opted out after the dead letter is %q", got)
	}
	if got := r.status(phone(2)); got != api.Active {
		t.Errorf("who came back is %q", got)
	}
	if diff := cmp.Diff(map[string]int{phone(1): 1, phone(2): 3}, r.texts()); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
}
