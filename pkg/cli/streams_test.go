package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/peer"
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

// TestContext: a context of the nats program tells how to connect, and what needs
// nothing else of the configuration needs no file.
func TestContext(t *testing.T) {
	program := peer.Need(t, "nats")
	m := newMorgue(t)
	m.fill()
	t.Setenv("XDG_CONFIG_HOME", m.dir)
	t.Setenv("NATS_CONTEXT", "")
	cmd := exec.CommandContext(t.Context(), program, "context", "add", "prod", "--server", m.conn.NC.ConnectedUrl(), "--select")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(m.dir, "relay.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	m.write("relay.yaml", strings.Replace(string(text), m.conn.NC.ConnectedUrl(), nowhere, 1))
	for _, name := range []string{"prod", "-"} {
		m.executeIn(t.Context(), "dead-letters", "list", "--context", name).expect(t, 0, "3 in all")
		m.execute("check", "--context", name).expect(t, 0, "broker: connect: "+m.conn.NC.ConnectedUrl())
	}
	m.executeIn(t.Context(), "actions", "--context", "prod").expect(t, 0, "ENDED")
	m.execute("dead-letters", "list").expect(t, 4, nowhere)
	m.executeIn(t.Context(), "actions", "--context", "test").expect(t, 2, `nats context "test": there is none in`)
	m.execute("check", "--context", "test").expect(t, 2, "there is none in")
	m.execute("run", "--context", "prod").expect(t, 2, "a worker's broker stands in its configuration")
}
