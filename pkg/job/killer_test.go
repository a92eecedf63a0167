package job_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queue"
	"attentive.internal/pkg/queuetest"
)

// programEnv makes this test program a worker that jobs can kill.
const programEnv = "JOB_TEST_WORKER"

func TestMain(m *testing.M) {
	text := os.Getenv(programEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var w mortal
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := w.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// mortal is a worker in a process of its own. A job of template "kill" kills
// it, one of template "long" takes two seconds.
type mortal struct {
	URL          string
	ID           string
	Destinations []string
}

func (w mortal) run(ctx context.Context) error {
	log := slog.New(slog.DiscardHandler)
	conn, err := broker.Connect(ctx, broker.Options{URL: w.URL, Name: w.ID}, log)
	if err != nil {
		return err
	}
	defer conn.NC.Close()
	leases, err := conn.JS.KeyValue(ctx, broker.BucketOwners)
	if err != nil {
		return err
	}
	entries, err := conn.JS.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		return err
	}
	var labels []metrics.Destination
	for _, d := range w.Destinations {
		labels = append(labels, metrics.Destination{ID: d, Credential: "sftp", Kinds: []contract.Kind{contract.Segment}})
	}
	quarantine := queue.NewQuarantine(w.ID)
	parts := job.Parts{
		Conn: conn, Ledger: ledger.New(entries).By(w.ID), Events: event.NewPublisher(conn, log),
		DeadLetters: deadletter.New(conn, w.ID), Quarantine: quarantine, Log: log,
		Metrics: metrics.New(prometheus.NewRegistry(), labels),
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = quarantine.Run(ctx) })
	owners := owner.New(leases, owner.Config{ID: w.ID, Program: "test", Lease: 2 * time.Second}, log)
	plan := owner.Plan{Accounts: []string{"mortal"}, Destinations: w.Destinations}
	return owners.Run(ctx, plan, func(ctx context.Context, _ string, account *owner.Tenure) error {
		var working sync.WaitGroup
		for _, d := range w.Destinations {
			r := &job.Runner[*attentivev1.SegmentJob]{
				Kind: contract.Segment, Destination: d, Handle: mortalHandler, Parts: parts,
				New: func() *attentivev1.SegmentJob { return &attentivev1.SegmentJob{} },
			}
			working.Go(func() { _ = account.Destination(ctx, d, r.Run) })
		}
		working.Wait()
		return nil
	})
}

func mortalHandler(ctx context.Context, r *run) error {
	if err := upload(ctx, r); err != nil {
		return err
	}
	switch r.Job.GetTemplate() {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "long":
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return succeed(ctx, r)
}

// A job that kills its worker each time ends as a dead letter, known to ledger
// and upstream. Neither the jobs around it nor a long one in another queue of
// the same process do.
func TestKiller(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p, other := on(t, s, "acme"), on(t, s, "other")
	publish := func(p *place, template string) (id string) {
		j := p.newJob()
		j.Template = template
		p.send(t, j)
		return j.GetId()
	}
	innocent := []string{publish(p, "default")}
	killer := publish(p, "kill")
	innocent = append(innocent, publish(p, "default"))
	long := publish(other, "long")

	workers := mortals(t, mortal{URL: s.URL, Destinations: []string{p.destination, other.destination}})
	p.empties(t)
	other.empties(t)
	if got := workers(); got != 6 {
		t.Errorf("%d workers died, want 6", got)
	}

	for _, id := range innocent {
		if got := p.entry(t, id).State; got != ledger.Succeeded {
			t.Errorf("a job beside the killer is %s, want succeeded", got)
		}
	}
	if got := other.entry(t, long); got.State != ledger.Succeeded {
		t.Errorf("the long job is %s for %q, want succeeded", got.State, got.Detail)
	}
	if got := p.entry(t, killer); got.State != ledger.DeadLettered || got.Reason != fault.CrashLoop || !strings.HasPrefix(got.Detail, "3 workers died") {
		t.Errorf("the killer is %s for %s: %q", got.State, got.Reason, got.Detail)
	}
	p.toldInOrder(t, killer, ledger.DeadLettered)
	events := p.events(t, killer)
	if got := events[len(events)-1].GetReason(); got != string(fault.CrashLoop) {
		t.Errorf("upstream was told the reason %q, want %q", got, fault.CrashLoop)
	}
	if l := p.dead(t); len(l) != 1 || l[0].Job != killer || l[0].Reason != fault.CrashLoop {
		t.Errorf("dead letters %+v, want that of the killer", l)
	}
	if l := other.dead(t); len(l) != 0 {
		t.Errorf("dead letters %+v, want none", l)
	}
}

// mortals starts one worker after the other until stop is called, which returns
// how many were killed.
func mortals(t *testing.T, w mortal) (stop func() (killed int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var starting sync.WaitGroup
	killed := 0
	starting.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			w.ID = fmt.Sprintf("mortal-%d", n)
			text, err := json.Marshal(w)
			if err != nil {
				t.Error(err)
				return
			}
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.Env = append(os.Environ(), programEnv+"="+string(text))
			out, err := cmd.CombinedOutput()
			status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			switch {
			case ok && status.Signaled() && status.Signal() == syscall.SIGKILL:
				killed++
			case err != nil && ctx.Err() == nil:
				t.Errorf("%s: %v\n%s", w.ID, err, out)
				return
			}
		}
	})
	stop = sync.OnceValue(func() int {
		cancel()
		starting.Wait()
		return killed
	})
	t.Cleanup(func() { stop() })
	return stop
}
