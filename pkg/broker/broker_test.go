package broker_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/loopback/loopbacktest"
	"attentive.internal/pkg/queuetest"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestASilentNameServerIsNotWaitedFor: the client library looks a name up while all that
// uses the connection waits, and nothing ends that.
func TestASilentNameServerIsNotWaitedFor(t *testing.T) { //nolint:paralleltest // it changes the resolver of all
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	before := net.DefaultResolver
	defer func() { net.DefaultResolver = before }()
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", silent.LocalAddr().String())
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := broker.Connect(ctx, broker.Options{URL: "nats://one.example:4222,nats://two.example:4222"}, discard()); err == nil {
		t.Error("Connect = nil without a broker")
	}
	if took := time.Since(began); took > 15*time.Second { // two seconds for each time that each is tried
		t.Errorf("Connect gave up after %v", took)
	}
}

// TestCloseDoesNotWaitForAClientThatIsStuck: whoever closes the connection is to end.
func TestCloseDoesNotWaitForAClientThatIsStuck(t *testing.T) {
	t.Parallel()
	c, err := broker.Connect(t.Context(), broker.Options{URL: queuetest.Start(t).URL}, discard())
	if err != nil {
		t.Fatal(err)
	}
	free := c.Stick()
	began := time.Now()
	if err := c.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "does not end it") {
		t.Errorf("Close = %v, want that the library does not end the connection", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("Close took %v", took)
	}
	free()
	<-c.Closed()
}

// answering runs a fake server that greets with the version and answers pings.
func answering(t *testing.T, version string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "INFO {\"server_id\":\"S\",\"version\":%q,\"headers\":true,\"max_payload\":1048576}\r\n", version)
			lines := bufio.NewScanner(c)
			for lines.Scan() {
				if strings.HasPrefix(lines.Text(), "PING") {
					fmt.Fprint(c, "PONG\r\n")
				}
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return "nats://" + l.Addr().String()
}

// guarded runs a server that wants a password.
func guarded(t *testing.T) string {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, Username: "relay", Password: "right", NoLog: true, NoSigs: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("server is not ready")
	}
	return "nats://relay:wrong-secret@" + s.Addr().String()
}

// written returns the path of a file of the name that holds the text.
func written(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConnectSaysWhatToDo(t *testing.T) {
	t.Parallel()
	nowhere := "nats://user:wrong-secret@" + loopbacktest.Reserve(t).Address()
	tests := []struct {
		name string
		opt  broker.Options
		want []string
	}{
		{"no URL", broker.Options{}, []string{"broker.url"}},
		{"nobody listens", broker.Options{URL: nowhere}, []string{"refused", "check that the broker runs", strings.Split(nowhere, "@")[1]}},
		{"password refused", broker.Options{URL: guarded(t)}, []string{"Authorization Violation", "broker.credentials"}},
		{
			"credentials of no kind",
			broker.Options{URL: nowhere, CredentialsFile: written(t, "relay.creds", "neither")},
			[]string{"relay.creds", "neither a JWT nor an nkey seed", "broker.credentials"},
		},
		{
			"certificates missing",
			broker.Options{URL: nowhere, CAFile: filepath.Join(t.TempDir(), "ca.pem")},
			[]string{"ca.pem", "no such file"},
		},
		{
			"certificates of no kind",
			broker.Options{URL: nowhere, CAFile: written(t, "ca.pem", "none")},
			[]string{"ca.pem", "failed to parse root certificate"},
		},
		{
			"credentials missing",
			broker.Options{URL: nowhere, CredentialsFile: filepath.Join(t.TempDir(), "relay.creds")},
			[]string{"relay.creds", "no such file", "broker.credentials"},
		},
		{"server too old", broker.Options{URL: answering(t, "2.12.9")}, []string{"2.12.9", "upgrade", "2.14"}},
		{"server without a version", broker.Options{URL: answering(t, "dev")}, []string{`"dev"`, "2.14"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // for the first attempt, on a machine that is busy
			defer cancel()
			c, err := broker.Connect(ctx, tt.opt, discard())
			if err == nil {
				c.NC.Close()
				t.Fatal("Connect succeeded")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not contain %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "wrong-secret") {
				t.Errorf("error %q shows the password", err)
			}
		})
	}
}

func TestConnectNeedsJetStream(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{DontListen: true, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Shutdown)
	_, err = broker.Connect(t.Context(), broker.Options{InProcess: s}, discard())
	if err == nil || !strings.Contains(err.Error(), "enable JetStream") {
		t.Errorf("Connect = %v, want the advice to enable JetStream", err)
	}
}

func TestConnectInProcess(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	c, err := broker.Connect(t.Context(), broker.Options{InProcess: s}, discard())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Error(err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A worker may be started before the broker.
func TestConnectWaitsForTheBroker(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	p.Down()
	connected := make(chan error, 1)
	go func() {
		c, err := broker.Connect(t.Context(), broker.Options{URL: p.URL}, discard())
		if err == nil {
			err = c.Close(t.Context())
		}
		connected <- err
	}()
	select {
	case err := <-connected:
		t.Fatalf("Connect = %v while the broker is away", err)
	case <-time.After(100 * time.Millisecond):
	}
	p.Up()
	if err := <-connected; err != nil {
		t.Error(err)
	}
}

func TestLostAndBack(t *testing.T) {
	t.Parallel()
	s := queuetest.Start(t)
	p := queuetest.StartProxy(t, s.URL)
	c := queuetest.Connect(t, p.URL)
	losses := map[string]func(){"cut": p.Cut, "restart": s.Restart, "away": func() {
		s.Stop()
		<-c.Lost()
		s.Restart()
	}}
	for name, lose := range losses {
		lost := c.Lost()
		select {
		case <-lost:
			t.Fatalf("%s: the connection is lost before", name)
		default:
		}
		lose()
		<-lost
		if err := c.Await(t.Context()); err != nil {
			t.Fatalf("%s: await: %v", name, err)
		}
		if _, err := c.JS.AccountInfo(t.Context()); err != nil {
			t.Errorf("%s: request after it: %v", name, err)
		}
	}

	s.Stop()
	<-c.Lost()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("stopping")
	cancel(cause)
	if err := c.Await(ctx); !errors.Is(err, cause) {
		t.Errorf("Await = %v, want the cause of its context", err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Errorf("Close without a broker = %v", err)
	}
	select {
	case <-c.Closed():
	default:
		t.Error("Closed is open after Close")
	}
	if err := c.Await(t.Context()); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("Await after Close = %v, want %v", err, nats.ErrConnectionClosed)
	}
}

// A broker that stands still, while more is sent than the buffers on the way to it
// take, is given up like one that answers no ping.
func TestAStuckConnectionIsGivenUp(t *testing.T) {
	t.Parallel()
	p := queuetest.StartProxy(t, queuetest.Start(t).URL)
	c := queuetest.Connect(t, p.URL)
	lost := c.Lost()
	p.Freeze()
	began := time.Now()
	for data, stuck := make([]byte, 512<<10), true; stuck; {
		select {
		case <-lost:
			stuck = false
		default:
			_ = c.NC.Publish("elsewhere", data) // fails when its time is up
		}
	}
	if took := time.Since(began); took > 45*time.Second {
		t.Errorf("it took %v", took)
	}
	p.Thaw()
	if err := c.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestEnsureThenCheckAgree(t *testing.T) {
	t.Parallel()
	c := queuetest.Connect(t, queuetest.Start(t).URL)
	err := c.Check(t.Context(), broker.Settings{})
	if err == nil {
		t.Fatal("Check found everything in an empty broker")
	}
	for _, name := range []string{
		broker.StreamJobs, broker.StreamProfiles, broker.StreamDead, broker.StreamEvents, broker.StreamActions,
		broker.BucketOwners, broker.BucketLedger, broker.BucketConsent, broker.BucketBatches, broker.BucketFiles, broker.BucketPauses,
		broker.ObjectsAudiences, broker.ObjectsRejects,
	} {
		if !strings.Contains(err.Error(), fmt.Sprintf("%q does not exist", name)) {
			t.Errorf("Check does not miss %s: %v", name, err)
		}
	}
	for range 2 {
		if err := c.Ensure(t.Context(), broker.Settings{}); err != nil {
			t.Fatal(err)
		}
		if err := c.Check(t.Context(), broker.Settings{}); err != nil {
			t.Error(err)
		}
	}
}

// Whatever is stored while several processes make everything stays, and is stored once.
func TestEnsureByManyAtOnce(t *testing.T) {
	t.Parallel()
	t.Run("one server", func(t *testing.T) {
		t.Parallel()
		ensureByMany(t, queuetest.Start(t).URL, broker.Settings{})
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		ensureByMany(t, queuetest.StartCluster(t).URL, broker.Settings{Replicas: 3})
	})
}

func ensureByMany(t *testing.T, url string, s broker.Settings) {
	t.Helper()
	publisher := queuetest.Connect(t, url)
	const n, stored = 4, 20
	results := make(chan error, n)
	for range n {
		c := queuetest.Connect(t, url)
		go func() { results <- c.Ensure(t.Context(), s) }()
	}
	for i := range stored {
		id := jetstream.WithMsgID(fmt.Sprint(i))
		for t.Context().Err() == nil {
			_, err := publisher.JS.Publish(t.Context(), contract.JobSubject(contract.Segment, "acme"), []byte("job"), id, jetstream.WithRetryAttempts(0))
			if err == nil {
				break
			}
			time.Sleep(time.Millisecond) // none takes it yet
		}
	}
	for range n {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	stream, err := publisher.JS.Stream(t.Context(), broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	if state := stream.CachedInfo().State; state.Msgs != stored || state.FirstSeq < 1<<50 {
		t.Errorf("%d messages from sequence %d, want %d from the time on", state.Msgs, state.FirstSeq, stored)
	}
}

// A difference is explained by Check, mended by Ensure, and mending it keeps
// both the messages and what the operator chose.
func TestEnsureMends(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	ctx := t.Context()
	stream, err := c.JS.Stream(ctx, broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.JS.Publish(ctx, contract.ProfileSubject("acme", contract.Attributes, contract.LiveJob), []byte("x")); err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.Discard = jetstream.DiscardOld
	cfg.MaxBytes = 1 << 20
	cfg.AllowAtomicPublish = false
	cfg.AllowDirect = true
	cfg.Compression = jetstream.S2Compression
	if _, err := c.JS.UpdateStream(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	err = c.Check(ctx, broker.Settings{})
	for _, want := range []string{broker.StreamProfiles, "discard", "maximum bytes is 1048576", "atomic batches is false, want true", "direct reads is true, want false"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check = %v, want it to name %q", err, want)
		}
	}
	if err := c.Ensure(ctx, broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(ctx, broker.Settings{}); err != nil {
		t.Error(err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != 1 || info.Config.Compression != jetstream.S2Compression {
		t.Errorf("after Ensure: %d messages, compression %v; want 1 and what the operator chose", info.State.Msgs, info.Config.Compression)
	}
}

// A bucket of leases as earlier versions made it takes the marks of replicas
// that have gone, and keeps its leases.
func TestEnsureMendsTheOwners(t *testing.T) {
	t.Parallel()
	c := queuetest.Connect(t, queuetest.Start(t).URL)
	ctx := t.Context()
	owners, err := c.JS.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: broker.BucketOwners, History: 1})
	if err != nil {
		t.Fatal(err)
	}
	revision, err := owners.Create(ctx, "account.acme", []byte("lease"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Ensure(ctx, broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(ctx, broker.Settings{}); err != nil {
		t.Error(err)
	}
	if err := owners.Purge(ctx, "replica.gone", jetstream.PurgeTTL(time.Minute)); err != nil {
		t.Errorf("a mark that expires is refused: %v", err)
	}
	status, err := owners.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if status.TTL() != 0 {
		t.Errorf("leases expire in the broker after %v", status.TTL())
	}
	if lease, err := owners.Get(ctx, "account.acme"); err != nil || lease.Revision() != revision {
		t.Errorf("the lease is %v, %v; want it as it was", lease, err)
	}
}

// What is kept of batches has an end date, also in a bucket that was made without
// one.
func TestBatchesHaveAnEndDate(t *testing.T) {
	t.Parallel()
	c := queuetest.Connect(t, queuetest.Start(t).URL)
	ctx := t.Context()
	batches, err := c.JS.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: broker.BucketBatches, History: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := batches.PutString(ctx, "acme.1", "kept"); err != nil {
		t.Fatal(err)
	}
	if err := c.Ensure(ctx, broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(ctx, broker.Settings{}); err != nil {
		t.Error(err)
	}
	status, err := batches.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if want := 90 * 24 * time.Hour; status.TTL() != want || status.Values() != 1 {
		t.Errorf("%d entries end after %v, want 1 after %v", status.Values(), status.TTL(), want)
	}
}

func TestEnsureNeverDeletes(t *testing.T) {
	t.Parallel()
	c := queuetest.Connect(t, queuetest.Start(t).URL)
	_, err := c.JS.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: broker.StreamJobs, Subjects: []string{contract.JobSubject(contract.Segment, "*")}, Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		t.Fatal(err)
	}
	err = c.Ensure(t.Context(), broker.Settings{})
	if err == nil || !strings.Contains(err.Error(), broker.StreamJobs) || !strings.Contains(err.Error(), "cannot be changed in place") {
		t.Errorf("Ensure = %v, want a refusal that names the stream", err)
	}
}

func TestEnsureExplains(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		settings broker.Settings
		want     string
	}{
		{"more bytes than the disk", broker.Settings{JobsBytes: 1 << 50}, "lower the ceilings"},
		{"more replicas than servers", broker.Settings{Replicas: 3}, "broker.replicas"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := queuetest.Connect(t, queuetest.Start(t).URL)
			err := c.Ensure(t.Context(), tt.settings)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Ensure = %v, want it to mention %q", err, tt.want)
			}
		})
	}
}

// A full work queue refuses the publisher and keeps all that it has.
func TestFullQueueRefuses(t *testing.T) {
	t.Parallel()
	c := queuetest.Connect(t, queuetest.Start(t).URL)
	ctx := t.Context()
	if err := c.Ensure(ctx, broker.Settings{JobsBytes: 64 << 10, EventsBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte("x"), 8<<10)
	var stored, first uint64
	var err error
	for range 20 {
		var ack *jetstream.PubAck
		if ack, err = c.JS.Publish(ctx, contract.JobSubject(contract.Segment, "acme"), payload); err != nil {
			break
		}
		stored++
		first = ack.Sequence + 1 - stored
	}
	if err == nil || stored == 0 {
		t.Fatalf("%d jobs stored, error %v; want some and a refusal", stored, err)
	}
	stream, err := c.JS.Stream(ctx, broker.StreamJobs)
	if err != nil {
		t.Fatal(err)
	}
	if info := stream.CachedInfo(); info.State.Msgs != stored || info.State.FirstSeq != first {
		t.Errorf("stream holds %d messages from sequence %d, want %d from %d",
			info.State.Msgs, info.State.FirstSeq, stored, first)
	}
	if err := c.Ensure(ctx, broker.Settings{JobsBytes: 16 << 10, EventsBytes: 64 << 10}); err != nil {
		t.Fatalf("a ceiling below what is stored: %v", err)
	}
	if stream, err = c.JS.Stream(ctx, broker.StreamJobs); err != nil {
		t.Fatal(err)
	}
	if info := stream.CachedInfo(); info.State.Msgs != stored || info.Config.MaxBytes != 16<<10 {
		t.Errorf("with a lower ceiling, %d bytes, %d jobs are left of %d", info.Config.MaxBytes, info.State.Msgs, stored)
	}
	for range 20 {
		if _, err := c.JS.Publish(ctx, contract.EventSubject(contract.Segment, "acme", "job"), payload); err != nil {
			t.Fatalf("events must never refuse: %v", err)
		}
	}
}

// Every message that a work stream takes fits into a dead letter.
func TestLargestMessageFitsDeadLetter(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	publish := func(subject string, headerBytes, total int) error {
		m := nats.NewMsg(subject)
		if headerBytes > 0 {
			m.Header.Set("X", strings.Repeat("h", headerBytes))
		}
		const frame = len("NATS/1.0\r\n") + len("X: \r\n") + len("\r\n")
		m.Data = make([]byte, total-headerBytes-frame)
		_, err := c.JS.PublishMsg(t.Context(), m)
		return err
	}
	work := []string{
		contract.JobSubject(contract.Expand, "acme"),
		contract.ProfileSubject("acme", contract.Subscribe, contract.LiveJob),
		contract.CheckpointSubject("acme", "job"),
	}
	for _, subject := range work {
		if err := publish(subject, 100, contract.MaxMessageBytes); err != nil {
			t.Errorf("%s: the largest message: %v", subject, err)
		}
		if err := publish(subject, 100, contract.MaxMessageBytes+1); err == nil {
			t.Errorf("%s: took more than the largest message", subject)
		}
	}
	dead := contract.DeadSubject(contract.Expand, "acme", "job")
	if err := publish(dead, 60<<10, broker.MaxDeadBytes); err != nil {
		t.Errorf("dead letter of the largest message: %v", err)
	}
}

// Servers since 2.15 stop at 1000 consumers unless the stream says otherwise.
func TestMoreThanThousandConsumers(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	for i := range 1001 {
		destination := fmt.Sprintf("d%d", i)
		_, err := c.JS.CreateConsumer(t.Context(), broker.StreamJobs, jetstream.ConsumerConfig{
			Durable:       broker.ConsumerName(contract.Segment, destination),
			FilterSubject: contract.ConsumerFilter(contract.Segment, destination),
			AckPolicy:     jetstream.AckExplicitPolicy,
			MemoryStorage: true, // the limit is the same, and files take 15 ms each
		})
		if err != nil {
			t.Fatalf("consumer %d: %v", i+1, err)
		}
	}
}

func TestNamesOfOtherConsumers(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "segment", "segment-", "jobs-acme", "segment-Acme", "segment_acme"} {
		if k, destination, ok := broker.ParseConsumerName(name); ok {
			t.Errorf("ParseConsumerName(%q) = %q, %q, want that it is not ours", name, k, destination)
		}
	}
}

func TestEveryKindHasAPlace(t *testing.T) {
	t.Parallel()
	c := queuetest.Start(t).Conn(t)
	names := make(map[string]bool)
	for _, k := range contract.Kinds() {
		for _, destination := range []string{"acme", "acme-api"} {
			name := broker.ConsumerName(k, destination)
			if names[name] {
				t.Errorf("consumer name %q is used twice", name)
			}
			names[name] = true
			if gotKind, gotDestination, ok := broker.ParseConsumerName(name); gotKind != k || gotDestination != destination || !ok {
				t.Errorf("ParseConsumerName(%q) = %q, %q, %v", name, gotKind, gotDestination, ok)
			}
			subject := contract.JobSubject(k, destination)
			if k.Profile() {
				subject = contract.ProfileSubject(destination, k, contract.LiveJob)
			}
			ack, err := c.JS.Publish(t.Context(), subject, nil)
			if err != nil || ack.Stream != broker.StreamOf(k) {
				t.Errorf("publish to %s: stored by %+v, %v; want stream %s", subject, ack, err, broker.StreamOf(k))
			}
			_, err = c.JS.CreateConsumer(t.Context(), broker.StreamOf(k), jetstream.ConsumerConfig{
				Durable: name, FilterSubject: contract.ConsumerFilter(k, destination), AckPolicy: jetstream.AckExplicitPolicy,
			})
			if err != nil {
				t.Errorf("consumer %s: %v", name, err)
			}
		}
	}
}
