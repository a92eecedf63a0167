package stage_test

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/stage"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/logtest"
	"attentive.internal/pkg/publish"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// running is a stage with both workers at work.
type running struct {
	*stage.Stage
	conn *broker.Conn
	log  *logtest.Buffer
}

// run runs a stage until the test ends. Before the workers start, prepare may
// change what lies in its directory.
func run(t *testing.T, prepare func(*stage.Stage)) *running {
	t.Helper()
	log := &logtest.Buffer{}
	s, err := stage.Open(t.Context(), stage.Config{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), log), nil))})
	if err != nil {
		t.Fatal(err)
	}
	prepare(s)
	conn, err := s.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() {
		ended <- s.Run(ctx, func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the stage ended with %v", err)
		}
		conn.NC.Close()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return &running{Stage: s, conn: conn, log: log}
}

// edit replaces text in the configuration.
func edit(t *testing.T, s *stage.Stage, old, replacement string) {
	t.Helper()
	text, err := os.ReadFile(s.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		t.Fatalf("the configuration has no %q:\n%s", old, text)
	}
	write(t, s.ConfigFile, strings.ReplaceAll(string(text), old, replacement))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// rows are two people.
const rows = "mobile\n(206) 555-0100\n+14155550123\n"

// segmentJob asks for a segment of these people, as a service does.
func segmentJob(s *attentivev1.Source) *attentivev1.SegmentJob {
	if s == nil {
		s = &attentivev1.Source{Location: &attentivev1.Source_Inline{Inline: []byte(rows)}}
	}
	s.Format = attentivev1.Format_FORMAT_CSV
	return &attentivev1.SegmentJob{
		Id: uuid.NewString(), Destination: account.Segments, Template: account.Template,
		Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "Friends"}},
		Groups: []*attentivev1.Group{{Name: "Friends", Source: s}},
	}
}

func (r *running) publish(t *testing.T, job *attentivev1.SegmentJob) {
	t.Helper()
	if _, err := publish.New(r.conn).SegmentJob(t.Context(), job); err != nil {
		t.Fatal(err)
	}
}

// eventually is for what takes a while on a busy machine.
func eventually(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// until returns the job's first event in the state.
func (r *running) until(t *testing.T, job string, state attentivev1.JobState) *attentivev1.JobEvent {
	t.Helper()
	var states []string
	for e, err := range event.Follow(eventually(t), r.conn, contract.Segment, account.Segments, job) {
		if err != nil {
			t.Fatalf("job %s went through %v, want %v: %v", job, states, state, err)
		}
		if e.GetState() == state {
			return e
		}
		states = append(states, e.GetState().String()+" "+e.GetText())
	}
	t.Fatalf("job %s went through %v, want %v", job, states, state)
	return nil
}

// succeeds waits until the ledger knows that the job has succeeded, and the
// sandbox has the two people.
func (r *running) succeeds(t *testing.T, job string) {
	t.Helper()
	ctx := eventually(t)
	kv, err := r.conn.JS.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	for {
		record, ok, err := ledger.New(kv).Find(ctx, contract.Segment, account.Segments, job)
		if err != nil {
			t.Fatal(err)
		}
		if ok && record.Entry().State == ledger.Succeeded {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("job %s has not succeeded: %+v", job, record.Entry())
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	if err := r.Sandbox.Files().Settled(ctx); err != nil {
		t.Fatal(err)
	}
	segments := r.Sandbox.Segments()
	if len(segments) != 1 || segments[0].Name != "Friends" || segments[0].Count != 2 || segments[0].Published != 1 {
		t.Errorf("the sandbox has %+v, want Friends with two people, replaced once", segments)
	}
}

// letters returns the dead letters of the destination.
func (r *running) letters(t *testing.T) []deadletter.Letter {
	t.Helper()
	var letters []deadletter.Letter
	for l, err := range deadletter.New(r.conn, "test").List(t.Context(), deadletter.Filter{Destination: account.Segments}) {
		if err != nil {
			t.Fatal(err)
		}
		letters = append(letters, l)
	}
	return letters
}

func TestASecondProcessIsKeptOut(t *testing.T) {
	t.Parallel()
	r := run(t, func(*stage.Stage) {})
	_, err := stage.Open(t.Context(), stage.Config{Dir: r.Dir, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), r.Dir) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v, want an error that names the directory and the other process", err)
	}
}

func TestAddressesStay(t *testing.T) {
	t.Parallel()
	cfg := stage.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	open := func() stage.Addresses {
		s, err := stage.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s.Addresses
	}
	first := open()
	if second := open(); second != first {
		t.Errorf("addresses %+v, at first %+v", second, first)
	}
	other := openBeside(t, first)
	if other.Addresses != first {
		t.Errorf("addresses %+v, preferred were %+v", other.Addresses, first)
	}
	if third := open(); third.Broker == first.Broker {
		t.Errorf("broker at %s, which another stage has", third.Broker)
	}
}

// openBeside opens another stage, which is closed at the end of the test.
func openBeside(t *testing.T, prefer stage.Addresses) *stage.Stage {
	t.Helper()
	s, err := stage.Open(t.Context(), stage.Config{Dir: t.TempDir(), Prefer: prefer, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.WithoutCancel(t.Context())) })
	return s
}

// TestAddressesAreItsOwn: also those where nobody listens before the workers run.
func TestAddressesAreItsOwn(t *testing.T) {
	t.Parallel()
	first := openBeside(t, stage.Addresses{}).Addresses
	second := openBeside(t, first).Addresses
	for name, taken := range map[string]bool{
		"broker": second.Broker == first.Broker, "API": second.API == first.API, "SFTP": second.SFTP == first.SFTP,
		"control": second.Control == first.Control, "segment ops": second.SegmentOps == first.SegmentOps,
		"attributes ops": second.AttributesOps == first.AttributesOps,
	} {
		if taken {
			t.Errorf("%s: two stages have the address of the first, %+v", name, first)
		}
	}
}

// reloaded returns once both workers have taken over the changed configuration, as their
// log says: nothing that it does for others shows it.
func (r *running) reloaded(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	const workers = 2
	for strings.Count(r.log.String(), "the configuration has changed: work goes on") < workers {
		if time.Now().After(deadline) {
			t.Fatalf("the configuration was not read again:\n%s", r.log.String())
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}
