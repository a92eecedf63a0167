package cli_test

import (
	"testing"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queuetest"
)

func TestStreams(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	d := newDesk(t, s.URL)
	d.execute("streams").expect(t, 1, `"ATTENTIVE_JOBS" does not exist`, `"attentive_owners" does not exist`)
	d.execute("streams", "--apply").expect(t, 0, "as the workers need them")
	d.execute("streams").expect(t, 0, "as the workers need them")

	c := queuetest.Connect(t, s.URL)
	if err := c.JS.DeleteStream(t.Context(), broker.StreamEvents); err != nil {
		t.Fatal(err)
	}
	d.execute("streams").expect(t, 1, `"ATTENTIVE_EVENTS" does not exist`)
}
