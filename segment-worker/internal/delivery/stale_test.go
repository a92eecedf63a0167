package delivery_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/metrics"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/pkg/source"
	"attentive.internal/pkg/worker"
	"attentive.internal/segment-worker/internal/baseline"
	"attentive.internal/segment-worker/internal/delivery"
	"attentive.internal/segment-worker/internal/filename"
	"attentive.internal/segment-worker/internal/remote"
)

// TestLateOpenOfAnOldOwner has the receiver open a file to write for an owner that
// is long dead, when the next one has uploaded the same job and is about to publish
// it. Nothing but the name of the file keeps it whole.
func TestLateOpenOfAnOldOwner(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	s := newStory(t, server, newReceiver(t), "acme")
	s.lease = mortal
	opened := make(chan struct{}) // late
	late := make(chan struct{})
	openLate := sync.OnceFunc(func() { close(late) })
	t.Cleanup(openLate) // or, after a failure, the server would wait for its request
	var opens, lists atomic.Int32
	var afterwards atomic.Bool
	s.expose(queuetest.Trip{Counts: s.says})
	s.sftp.Intercept(func(op sftptest.Op, _ string) error {
		switch {
		case op == sftptest.OpOpen && opens.Add(1) == 1:
			s.die()
			<-late
			afterwards.Store(true)
		// The second owner lists the folder to sweep it, to look at what it has
		// uploaded, and once more before it renames that.
		case op == sftptest.OpList && opens.Load() > 0 && lists.Add(1) == 3:
			openLate()
			select {
			case <-opened:
			case <-time.After(patience):
				t.Error("the late opening does not come")
			}
		}
		return nil
	})
	s.sftp.Observe(func(op sftptest.Op, _ string) {
		if op == sftptest.OpOpen && afterwards.CompareAndSwap(true, false) {
			close(opened)
		}
		if op == sftptest.OpRename {
			s.arrive()
		}
	})
	s.start()
	id := s.send(s.campaign("A", emails(120, 3), emails(2, 0)))
	s.eventually("death", func() bool { return s.isDead(nil) })
	s.successor()
	s.reaches(id, ledger.Succeeded)
	s.checkPublished(id)
	s.delivers(s.orchestration("B", emails(1, 0)))
	if left := s.temporary(); len(left) > 0 {
		t.Errorf("%v are left, of a job that has ended", left)
	}
}

// shortTimeout is the time-out of the renames of workers that are to lose their
// lease: most of that is left for them to come so far.
const shortTimeout = 600 * time.Millisecond

// TestRenamesNeedALease stops a worker, which can no longer renew its lease,
// right before it asks for it: what it may begin has to end with the lease.
func TestRenamesNeedALease(t *testing.T) {
	t.Parallel()
	for name, needs := range map[string]time.Duration{"a rename may outlast the lease": shortTimeout, "the lease is over": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			wire := queuetest.StartTripwire(t, p.url, queuetest.Trip{Counts: func(string) bool { return false }})
			p.url, p.lease = wire.URL, impatient
			p.configure()
			var held atomic.Pointer[owner.Tenure] // the last, should one be lost before its time
			h := hand{config: p.dir + "/" + p.config, log: p.log, timeout: shortTimeout, fence: func(tenure *owner.Tenure) func(net.Conn) net.Conn {
				held.Store(tenure)
				return tenure.Conn
			}}
			j := p.ofThree()
			renames := beforeRenames(p, j.GetId(), func() {
				wire.Break()
				tenure := held.Load()
				p.eventually("end of the lease", func() bool { return !tenure.Allows(needs) })
			})
			ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
			var running sync.WaitGroup
			running.Go(func() { h.run(ctx, t) })
			id := p.send(j)
			p.eventually("loss", func() bool { return strings.Contains(p.log.String(), "ownership is lost") })
			stop()
			running.Wait()
			p.finishes(id, renames)
		})
	}
}

// beforeRenames calls fn once, when the last answer before the first rename of a job
// is about to be given, and counts renames.
func beforeRenames(p *place, id string, fn func()) (renames *atomic.Int32) {
	renames = &atomic.Int32{}
	var called atomic.Bool
	p.sftp.Intercept(func(op sftptest.Op, _ string) error {
		if op == sftptest.OpRename {
			renames.Add(1)
		}
		// Lists that sweep or look at what was uploaded come before.
		if op == sftptest.OpList && !called.Load() && p.entry(id).State == ledger.Publishing {
			called.Store(true)
			fn()
		}
		return nil
	})
	return renames
}

// finishes checks that nothing was renamed, and has another worker do it.
func (p *place) finishes(id string, renames *atomic.Int32) {
	p.t.Helper()
	if n := renames.Load(); n > 0 {
		p.t.Errorf("%d renames were sent without a lease that lasts", n)
	}
	if got := p.entry(id).State; got != ledger.Publishing {
		p.t.Fatalf("the job is %s, want publishing", got)
	}
	p.url, p.lease = p.direct, patient
	p.configure()
	p.start()
	p.reaches(id, ledger.Succeeded)
	p.onceEach(id)
}

// freezing is a connection whose process stops once, before the write of a
// rename, when the flag file is there.
type freezing struct {
	net.Conn
	flag   string
	tenure *owner.Tenure
}

func (c freezing) Write(p []byte) (int, error) {
	// Requests are written by the goroutine that makes them.
	if bytes.Contains(debug.Stack(), []byte("(*Session).Rename")) && os.Remove(c.flag) == nil {
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGSTOP); err != nil {
			return 0, err
		}
		for c.tenure.Allows(0) { // other threads may be stopped a little earlier
		}
	}
	return c.Conn.Write(p)
}

// handConfig makes this test binary a worker with the configuration that it names.
const handConfig = "DELIVERY_TEST_HAND_CONFIG"

// TestFrozenBeforeARename stops the process of a worker between its question for
// the lease and the write of its first rename, until the lease is over: on waking
// it sends nothing.
func TestFrozenBeforeARename(t *testing.T) {
	t.Parallel()
	if file := os.Getenv(handConfig); file != "" {
		h := hand{config: file, log: os.Stdout, timeout: shortTimeout, fence: func(tenure *owner.Tenure) func(net.Conn) net.Conn {
			return func(c net.Conn) net.Conn { return freezing{tenure.Conn(c), filepath.Dir(file) + "/freeze", tenure} }
		}}
		h.run(t.Context(), t)
		return
	}
	p := newPlace(t)
	wire := queuetest.StartTripwire(t, p.url, queuetest.Trip{Counts: func(string) bool { return false }})
	p.url = wire.URL
	p.configure()
	frozen := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFrozenBeforeARename$")
	frozen.Env = append(os.Environ(), handConfig+"="+p.dir+"/"+p.config)
	frozen.Stdout, frozen.Stderr = p.log, p.log
	j := p.ofThree()
	renames := beforeRenames(p, j.GetId(), func() {
		wire.Break()
		p.file("freeze", "")
	})
	if err := frozen.Start(); err != nil {
		t.Fatal(err)
	}
	id := p.send(j)
	var status syscall.WaitStatus
	p.eventually("stop of the worker", func() bool {
		pid, err := syscall.Wait4(frozen.Process.Pid, &status, syscall.WUNTRACED|syscall.WNOHANG, nil)
		return pid != 0 || err != nil
	})
	if !status.Stopped() {
		t.Fatalf("the worker has ended: %v; log:\n%s", status, p.log)
	}
	froze := time.Now()
	lease, err := time.ParseDuration(p.lease)
	if err != nil {
		t.Fatal(err)
	}
	p.eventually("end of the lease", func() bool { return time.Since(froze) > lease })
	if err := frozen.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.eventually("loss", func() bool { return strings.Contains(p.log.String(), "ownership is lost") })
	if err := frozen.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = frozen.Wait() // it was killed
	p.finishes(id, renames)
}

// hand is a worker put together by hand, so that something can stand between its
// parts.
type hand struct {
	config  string // file
	log     io.Writer
	fence   func(*owner.Tenure) func(net.Conn) net.Conn
	timeout time.Duration    // of calls whose effect others see; zero for that of any worker
	now     func() time.Time // of file names; nil for time.Now
}

// byHand runs such a worker, which gives its job no time when it is stopped.
func (p *place) byHand() (stop func()) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	h := hand{config: filepath.Join(p.dir, p.config), log: p.log, now: p.now, fence: func(tenure *owner.Tenure) func(net.Conn) net.Conn { return tenure.Conn }}
	var running sync.WaitGroup
	running.Go(func() { h.run(ctx, p.t) })
	stop = func() {
		cancel()
		running.Wait()
	}
	p.t.Cleanup(stop)
	return stop
}

// run works the first destination of the configuration until ctx ends.
func (h hand) run(ctx context.Context, t *testing.T) {
	cfg, err := config.Load(h.config)
	if err != nil {
		t.Error(err)
		return
	}
	if h.now == nil {
		h.now = time.Now
	}
	if h.timeout == 0 {
		h.timeout = worker.Parts{Config: cfg}.CallTimeout()
	}
	d := cfg.Destinations[0]
	account := cfg.Credentials[0].SFTP
	log := slog.New(slog.NewTextHandler(h.log, nil))
	conn := queuetest.Connect(t, cfg.Broker.URL)
	bucket := func(name string) jetstream.KeyValue {
		kv, err := conn.JS.KeyValue(ctx, name)
		if err != nil {
			t.Error(err)
		}
		return kv
	}
	files := bucket(broker.BucketFiles)
	rejects, err := conn.JS.ObjectStore(ctx, broker.ObjectsRejects)
	if err != nil {
		t.Error(err)
	}
	sources, err := source.New(source.Config{JetStream: conn.JS})
	if err != nil {
		t.Error(err)
	}
	jobs := ledger.New(bucket(broker.BucketLedger))
	m := metrics.New(prometheus.NewRegistry(), []metrics.Destination{{ID: d.ID, Credential: d.Credential, Kinds: []contract.Kind{contract.Segment}}})
	work := func(ctx context.Context, tenure *owner.Tenure) error {
		deliveries := &delivery.Delivery{
			Destination: d,
			Remote: remote.Config{
				Host: account.Hostname, Port: account.Port, Username: account.Username, Passphrase: account.Passphrase.Value,
				HostKeys: account.HostKeys, Folder: d.Segment.RemoteFolder, Fence: h.fence(tenure),
			},
			Sessions: remote.NewSessions(1, log), Sources: sources, Rejects: rejects, Ledger: jobs,
			Numbers: filename.NewNumbers(files), Baselines: baseline.New(files), Names: new(delivery.Names), Metrics: m,
			CallTimeout: h.timeout, Log: log, Now: h.now,
		}
		runner := &job.Runner[*attentivev1.SegmentJob]{
			Kind: contract.Segment, Destination: d.ID, New: func() *attentivev1.SegmentJob { return &attentivev1.SegmentJob{} },
			Handle: deliveries.Handle,
			Parts: job.Parts{
				Conn: conn, Ledger: jobs, Events: event.NewPublisher(conn, log), DeadLetters: deadletter.New(conn, "test"), Metrics: m, Log: log,
			},
		}
		return runner.Run(ctx, tenure)
	}
	owners := owner.New(bucket(broker.BucketOwners), owner.Config{ID: "hand", Program: "test", Lease: cfg.Lease}, log)
	plan := owner.Plan{Accounts: []string{"hand"}, Destinations: []string{d.ID}}
	err = owners.Run(ctx, plan, func(ctx context.Context, _ string, tenure *owner.Tenure) error {
		return tenure.Destination(ctx, d.ID, work)
	})
	if err != nil {
		t.Error(err)
	}
}
