package nats_test

import (
	"os"
	"os/exec"
	"regexp"
	"testing"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/peer"
	"attentive.internal/pkg/queuetest"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
)

// commands returns the blocks of shell in the README's section on backups: one
// that saves, one that restores.
func commands(t *testing.T) (backup, restore string) {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	section := regexp.MustCompile(`(?s)\n### Backup and restore\n.*?\n## `).Find(readme)
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(section, -1)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks of commands, want one that saves and one that restores", len(blocks))
	}
	return string(blocks[0][1]), string(blocks[1][1])
}

// everything is all that a broker holds for us: of each stream the numbers that
// orders and checkpoints rely on, of each consumer how far it is.
func everything(t *testing.T, js jetstream.JetStream) map[string][]uint64 {
	t.Helper()
	held := make(map[string][]uint64)
	streams := js.ListStreams(t.Context())
	for info := range streams.Info() {
		name := info.Config.Name
		if name == "KV_"+broker.BucketOwners {
			continue // leases are taken anew
		}
		held[name] = []uint64{info.State.Msgs, info.State.LastSeq}
		stream, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		consumers := stream.ListConsumers(t.Context())
		for c := range consumers.Info() {
			held[name+" "+c.Name] = []uint64{c.AckFloor.Stream, uint64(c.NumAckPending), c.NumPending} //nolint:gosec // counts
		}
		if err := consumers.Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := streams.Err(); err != nil {
		t.Fatal(err)
	}
	return held
}

// TestBackupAndRestore runs the commands of the README: all that one broker held is
// found in another, and a worker takes it as it is.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	peer.Need(t, "nats")
	backup, restore := commands(t)
	dir := t.TempDir()
	run := func(url, script string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", script)
		cmd.Dir = dir
		cmd.Env = append(cmd.Environ(), "NATS_URL="+url, "NATS_TIMEOUT=1m", "HOME="+dir, "XDG_CONFIG_HOME="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v:\n%s\n%s", err, script, out)
		}
	}

	old := queuetest.Start(t)
	fill(t, old.Conn(t).JS)
	want := everything(t, old.Conn(t).JS)
	run(old.URL, backup)
	old.Stop()

	anew := queuetest.Start(t)
	run(anew.URL, restore)
	conn := anew.Conn(t) // makes what is missing, as a worker does
	if diff := cmp.Diff(want, everything(t, conn.JS)); diff != "" {
		t.Errorf("messages and last sequence; floor, pending and waiting (-before +after):\n%s", diff)
	}
	if err := conn.Check(t.Context(), broker.Settings{}); err != nil {
		t.Errorf("a worker would not be ready: %v", err)
	}
	objects, err := conn.JS.ObjectStore(t.Context(), broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := objects.GetString(t.Context(), "audience"); err != nil || got != "mobile\n" {
		t.Errorf("audience = %q, %v", got, err)
	}
}

// fill makes a broker hold something of each kind, and jobs that are done, at work
// and waiting.
func fill(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	subject := contract.JobSubject(contract.Segment, "acme")
	for range 3 {
		if _, err := js.Publish(t.Context(), subject, []byte("job")); err != nil {
			t.Fatal(err)
		}
	}
	consumer, err := js.CreateConsumer(t.Context(), broker.StreamJobs, jetstream.ConsumerConfig{
		Durable: broker.ConsumerName(contract.Segment, "acme"), FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		msg, err := consumer.Next()
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			err = msg.DoubleAck(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{broker.BucketLedger, broker.BucketConsent, broker.BucketBatches, broker.BucketFiles, broker.BucketPauses} {
		bucket, err := js.KeyValue(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bucket.PutString(t.Context(), "segment.acme.1", "{}"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{broker.ObjectsAudiences, broker.ObjectsRejects} {
		objects, err := js.ObjectStore(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := objects.PutString(t.Context(), "audience", "mobile\n"); err != nil {
			t.Fatal(err)
		}
	}
}
