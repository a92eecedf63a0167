package expand_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/attributes-worker/internal/expand"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
)

// manyRows make three batches, and checkpoints the claim of the job and one for
// each.
const (
	manyRows    = 2_600
	checkpoints = 4
)

func TestEveryRowIsStoredOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.work(options{})
	id := r.send(r.put("a.csv", rows(manyRows)))
	if got := w.sent(); got != id {
		t.Errorf("sending was told of %q, want %q", got, id)
	}
	r.complete(id, manyRows)
	entry := r.entry(id, ledger.Sending)
	p := entry.Progress
	if p.GetRowsRead() != manyRows || p.GetRowsRejected() != manyRows/100 || p.GetProfilesTotal() != manyRows-manyRows/100 ||
		p.GetProfilesOutstanding() != p.GetProfilesTotal() || p.GetRejectedByReason()["phone_invalid"] != manyRows/100 {
		t.Errorf("progress = %v", p)
	}
	profiles, err := r.conn.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	if last := profiles.CachedInfo().State.LastSeq; entry.Stored != last {
		t.Errorf("the ledger says that what is stored ends with %d, want %d", entry.Stored, last)
	}
	rejects, err := r.conn.JS.ObjectStore(t.Context(), broker.ObjectsRejects)
	if err != nil {
		t.Fatal(err)
	}
	text, err := rejects.GetString(t.Context(), p.GetRejectsObject())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(text, "\n"); n != manyRows/100+1 || !strings.Contains(text, ",100,phone_invalid,") {
		t.Errorf("rejects have %d lines beginning %.80q, want a header and %d rows, the first 100", n, text, manyRows/100)
	}
}

// The worker is stopped at the n-th checkpoint, or the broker is restarted, and
// another worker goes on.
func TestEveryRowIsStoredOnceWhereverTheWorkIsStopped(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		stop func(*rig, *worker)
	}{
		{"worker stopped", func(_ *rig, w *worker) { w.stop() }},
		{"broker restarted", func(r *rig, _ *worker) { r.restart() }},
		{"both", func(r *rig, w *worker) { w.stop(); r.restart() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			source := r.put("a.csv", rows(manyRows))
			for n := range checkpoints {
				awaitCheckpoint := r.watch(n + 1)
				w := r.work(options{url: r.server.URL})
				id := r.send(source)
				awaitCheckpoint()
				tt.stop(r, w)
				w.stop()
				next := r.work(options{})
				r.entry(id, ledger.Sending)
				eventually(t, func() error { return r.noCheckpoint(id) })
				r.complete(id, manyRows)
				next.stop()
			}
		})
	}
}

func TestBadSourcesStoreNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.work(options{})
	tests := []struct {
		name   string
		source *attentivev1.Source
		want   fault.Reason
	}{
		{"damaged last row", r.put("damaged.csv", rows(2_000)+`+14155550000,"never closed`), fault.SourceUnreadable},
		{"other digest", func() *attentivev1.Source {
			s := r.put("digest.csv", rows(2_000))
			s.Sha256 = make([]byte, 32)
			return s
		}(), fault.SourceChanged},
		{"missing object", &attentivev1.Source{
			Format:   attentivev1.Format_FORMAT_CSV,
			Location: &attentivev1.Source_Object{Object: "nowhere.csv"},
		}, fault.SourceMissing},
		{"missing column", inline(attentivev1.Format_FORMAT_CSV, "phone,color", "+14155552671,green"), fault.ColumnMissing},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			id := r.send(tt.source)
			entry := r.entry(id, ledger.DeadLettered, ledger.Sending)
			if entry.Reason != tt.want {
				t.Errorf("reason = %q (%s), want %q", entry.Reason, entry.Detail, tt.want)
			}
			if n := r.stored(contract.ProfileSubject(acme, "*", id)) + r.stored(contract.CheckpointSubject(acme, id)); n != 0 {
				t.Errorf("%d messages are stored, want none", n)
			}
		})
	}
}

// The source is replaced while its job waits for room, or while it is half
// expanded.
func TestASourceThatChangedIsRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		before int // profiles that wait already
		want   int // that are stored of the job
	}{
		{"before anything is stored", 1_500, 0},
		{"after the first batch", 0, 999},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.backlog(tt.before)
			w := r.work(options{ahead: 1_500})
			id := r.send(r.put("a.csv", rows(manyRows)))
			r.entry(id, ledger.Expanding)
			eventually(t, func() error { return r.wantStored(id, tt.want) })
			w.stop()
			r.put("a.csv", rows(manyRows+1))
			r.work(options{})
			entry := r.entry(id, ledger.DeadLettered, ledger.Sending)
			if entry.Reason != fault.SourceChanged || !strings.Contains(entry.Detail, "new job") {
				t.Errorf("job ended as %s, %s (%s), want source_changed with a remedy", entry.State, entry.Reason, entry.Detail)
			}
			if err := r.wantStored(id, tt.want); err != nil {
				t.Error(err)
			}
		})
	}
}

// The destinations of an account share the room for profiles that wait.
func TestOnlySoManyProfilesWait(t *testing.T) {
	t.Parallel()
	const ahead = 2_200
	for _, destinations := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d destinations", destinations), func(t *testing.T) {
			t.Parallel()
			shared := newRig(t)
			var ids []string
			for i := range destinations {
				ids = append(ids, fmt.Sprintf("%s-%d", acme, i))
			}
			room := expand.NewRoom(shared.conn.JS, ids, ahead)
			source := shared.put("a.csv", rows(manyRows))
			left := make(chan string, destinations)
			for _, id := range ids {
				r := *shared
				r.destination = id
				r.backlog(0)
				w := r.work(options{room: room})
				r.send(source)
				go func() { left <- <-w.sending }()
			}
			all := contract.ProfileSubject("*", "*", "*")
			for most, before, same, ended := 0, 0, 0, 0; ended < destinations; {
				waiting := shared.stored(all)
				if most = max(most, waiting); most > ahead {
					t.Fatalf("%d profiles wait, want at most %d", most, ahead)
				}
				if same++; waiting != before {
					before, same = waiting, 0
				}
				if waiting > ahead-999 && same > 20 { // there is no room for another batch, and nothing comes
					if err := shared.stream().Purge(t.Context(), jetstream.WithPurgeSubject(all)); err != nil {
						t.Fatal(err)
					}
				}
				select {
				case <-left:
					if ended++; ended == destinations && most <= ahead-999 {
						t.Errorf("at most %d profiles waited: the room was not used", most)
					}
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
	}
}

// A full stream is not the job's fault: it waits, and says so.
func TestAFullStreamHoldsTheJob(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.conn.Ensure(t.Context(), broker.Settings{ProfilesBytes: 300 << 10}); err != nil {
		t.Fatal(err)
	}
	w := r.work(options{})
	id := r.send(r.put("a.csv", rows(manyRows)))
	r.waiting(id, fault.QueueFull)
	if err := r.conn.Ensure(t.Context(), broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	w.sent()
	r.complete(id, manyRows)
	if entry := r.entry(id, ledger.Sending); entry.Failures != 0 {
		t.Errorf("%d failures are counted, want none", entry.Failures)
	}
}

// A broker has 50 batches of a stream open at a time. Expansions for which there is
// no room wait, and none of them counts that as a failure.
func TestExpansionsWaitForTheBrokerToTakeAnotherBatch(t *testing.T) {
	t.Parallel()
	const most, destinations = 50, 3
	shared := newRig(t)
	others := make([]jetstreamext.BatchPublisher, most)
	elsewhere := contract.ProfileSubject("elsewhere", contract.Attributes, contract.LiveJob)
	for i := range others {
		publisher, err := jetstreamext.NewBatchPublisher(shared.conn.JS)
		if err == nil {
			err = publisher.Add(elsewhere, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		others[i] = publisher
	}
	source := shared.put("a.csv", rows(cutRows))
	jobs := make(map[*rig]string)
	var refused []func()
	for i := range destinations {
		r := *shared
		r.destination = fmt.Sprintf("crowded-%d", i)
		refused = append(refused, r.begins(2))
		r.work(options{})
		jobs[&r] = r.send(source)
	}
	for _, awaitRefusal := range refused {
		awaitRefusal()
	}
	for _, publisher := range others {
		_, _ = publisher.Commit(t.Context(), elsewhere, nil) // the broker forgets what is open for 10 s
	}
	for r, id := range jobs {
		entry := r.entry(id, ledger.Sending)
		eventually(t, func() error { return r.noCheckpoint(id) })
		r.complete(id, cutRows)
		if entry.Failures != 0 {
			t.Errorf("%d failures of %s are counted, want none", entry.Failures, r.destination)
		}
	}
}

// What is stored is not stored again when the worker dies before it has
// acknowledged the job.
func TestAJobThatIsSendingIsOnlyHandedOver(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	id := r.send(inline(attentivev1.Format_FORMAT_CSV, "mobile,color", "+14155552671,green"))
	r.begun(id, ledger.Sending)
	w := r.work(options{})
	if got := w.sent(); got != id {
		t.Errorf("sending was told of %q, want %q", got, id)
	}
	if err := r.wantStored(id, 0); err != nil {
		t.Error(err)
	}
}

func TestAJobOfNoRowsIsSent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := r.work(options{})
	id := r.send(inline(attentivev1.Format_FORMAT_CSV, "mobile,color"))
	w.sent()
	if p := r.entry(id, ledger.Sending).Progress; p.GetRowsRead() != 0 || p.GetProfilesTotal() != 0 {
		t.Errorf("progress = %v, want nothing", p)
	}
}

func BenchmarkExpand(b *testing.B) {
	const n = 100_000
	r := newRig(b)
	w := r.work(options{})
	source := r.put("a.csv", rows(n))
	for b.Loop() {
		r.send(source)
		w.sent()
		b.StopTimer()
		if err := r.stream().Purge(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "rows/s")
}
