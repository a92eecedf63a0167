package delivery_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/google/go-cmp/cmp"
	"github.com/pkg/sftp"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/reject"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/segment-worker/internal/baseline"
)

// pairs is how many times two operations of one delivery fail in the test below.
var pairs = flag.Int("pairs", 24, "how many pairs of operations fail in TestEveryOperationFails")

// way is how an operation fails, and who goes on.
type way string

const (
	refused    way = "refused"    // answered with an error; of the receiver's operations
	lost       way = "lost"       // it did not happen, and the connection is gone
	unanswered way = "unanswered" // it happened, and the connection is gone
	dies       way = "dies"       // as lost, and another owner goes on
	diesAfter  way = "dies after" // as unanswered, and another owner goes on
)

// misfortune is the n-th operation that fails.
type misfortune struct {
	at  string // receiver or broker
	n   int
	way way
}

func (m misfortune) String() string { return fmt.Sprintf("%s, operation %d, %s", m.at, m.n, m.way) }

func (m misfortune) kills() bool { return m.way == dies || m.way == diesAfter }

func (m misfortune) moment() queuetest.Moment {
	if m.way == unanswered || m.way == diesAfter {
		return queuetest.After
	}
	return queuetest.Before
}

// TestEveryOperationFails has each operation of a delivery fail, at the receiver
// and at the broker, in every way; and some pairs of them. Whoever goes on, each
// segment is published once, whole and right, and nothing else is left.
func TestEveryOperationFails(t *testing.T) {
	t.Parallel()
	key := newReceiver(t)
	calm := newStory(t, queuetest.Start(t), key, "calm")
	calm.tell(nil)
	want := []sftptest.Op{
		sftptest.OpList,
		sftptest.OpOpen, sftptest.OpWrite, sftptest.OpClose, sftptest.OpStat,
		sftptest.OpOpen, sftptest.OpWrite, sftptest.OpClose, sftptest.OpStat,
		sftptest.OpList, sftptest.OpList, sftptest.OpRename, sftptest.OpRename,
		sftptest.OpStat, sftptest.OpOpen, sftptest.OpClose, sftptest.OpStat, // success files
		sftptest.OpStat, sftptest.OpOpen, sftptest.OpClose, sftptest.OpStat,
		sftptest.OpStat, sftptest.OpRemove, sftptest.OpRemove, sftptest.OpStat, // an older file, and its success file, which is not there
	}
	if diff := cmp.Diff(want, calm.asked); diff != "" {
		t.Fatalf("operations of an undisturbed delivery (-want +got):\n%s", diff)
	}
	if len(calm.said) < 20 {
		t.Fatalf("an undisturbed delivery says %d things to the broker, too few to be true: %v", len(calm.said), calm.said)
	}
	t.Logf("to the broker:\n%s", strings.Join(calm.said, "\n"))

	var stories [][]misfortune
	for n := range len(calm.asked) {
		for _, w := range []way{refused, lost, unanswered, dies, diesAfter} {
			stories = append(stories, []misfortune{{"receiver", n + 1, w}})
		}
	}
	for n := range len(calm.said) {
		for _, w := range []way{lost, unanswered, dies, diesAfter} {
			stories = append(stories, []misfortune{{"broker", n + 1, w}})
		}
	}
	random := rand.New(rand.NewPCG(7, 7))
	for range *pairs {
		first := stories[random.IntN(len(calm.asked)*5)][0]
		// Counted from the first: what is done again, and what comes after.
		second := misfortune{"receiver", first.n + 1 + random.IntN(20), []way{refused, lost, unanswered}[random.IntN(3)]}
		stories = append(stories, []misfortune{first, second})
	}

	if testing.Short() { // a quarter of them
		random.Shuffle(len(stories), func(i, j int) { stories[i], stories[j] = stories[j], stories[i] })
		stories = stories[:len(stories)/4]
	}
	sideBySide(t, len(stories), func(server *queuetest.Server, i int) {
		t.Run(fmt.Sprint(stories[i]), func(t *testing.T) {
			s := newStory(t, server, key, fmt.Sprintf("d%d", i))
			s.takes = i%2 == 0
			s.tell(stories[i])
		})
	})
}

// newReceiver makes the key that files are encrypted to.
func newReceiver(t *testing.T) *openpgp.Entity {
	t.Helper()
	entity, err := openpgp.NewEntity("Receiver", "", "receiver@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	return entity
}

// story is one delivery that things go wrong with.
type story struct {
	*place
	key   *openpgp.Entity
	takes bool // the receiver takes files away at once

	// What stands before the broker and before the receiver.
	wire *queuetest.Tripwire
	host *queuetest.Proxy

	mu        sync.Mutex // guards the rest
	asked     []sftptest.Op
	done      int // of what was asked
	said      []string
	died      bool
	published map[string]string // contents by final name
	times     int               // files published
}

func newStory(t *testing.T, server *queuetest.Server, key *openpgp.Entity, destination string) *story {
	t.Helper()
	s := &story{place: at(t, server, destination), published: map[string]string{}}
	s.receiver(key)
	s.settings, s.identifier, s.columns = "pgp: {keys: [receiver.asc]}", "email", "email: email"
	s.domain = destination // nobody else changes its numbers
	return s
}

// receiver has files encrypted to a key from now on.
func (s *story) receiver(key *openpgp.Entity) {
	s.t.Helper()
	s.key = key
	var public bytes.Buffer
	if err := key.Serialize(&public); err != nil {
		s.t.Fatal(err)
	}
	s.file("receiver.asc", public.String())
}

// tell has a job delivered while the misfortunes happen, at most one of them
// deadly or at the broker, and looks at what has become of it.
func (s *story) tell(misfortunes []misfortune) {
	s.t.Helper()
	trip := queuetest.Trip{Counts: s.says}
	for _, m := range misfortunes {
		if m.at == "broker" {
			trip.At, trip.Moment, trip.Final = m.n, m.moment(), m.kills()
		}
	}
	deadly := slices.ContainsFunc(misfortunes, misfortune.kills)
	if deadly {
		s.lease = mortal
	}
	s.settings += ", success_file: true"
	s.expose(trip)
	s.precede()
	s.afflict(misfortunes)
	id, end := s.begin()
	if deadly {
		// A worker that dies after its last step has done all.
		succeeded := sparingly(func() bool { return s.entry(id).State == ledger.Succeeded })
		s.eventually("death", func() bool { return s.isDead(misfortunes) || succeeded() })
		s.die()
		s.successor()
	}
	end()
}

// expose puts what can break between the first worker and the rest of the world.
func (s *story) expose(trip queuetest.Trip) {
	s.t.Helper()
	s.wire = queuetest.StartTripwire(s.t, s.direct, trip)
	s.host = queuetest.StartProxy(s.t, fmt.Sprintf("nats://%s:%d", s.sftp.Host, s.sftp.Port)) // forwards any protocol
	if _, err := fmt.Sscanf(s.host.URL, "nats://127.0.0.1:%d", &s.port); err != nil {
		s.t.Fatal(err)
	}
	s.url = s.wire.URL
	s.configure()
}

// olderFile is one of the list before, which the receiver has not taken yet.
const olderFile = "older.csv.pgp"

// precede has an older job leave a file at the receiver.
func (s *story) precede() {
	s.t.Helper()
	content := []byte("the list before")
	if err := os.WriteFile(s.sftp.Path(s.folder+"/"+olderFile), content, 0o600); err != nil {
		s.t.Fatal(err)
	}
	kv, err := s.conn.JS.KeyValue(s.t.Context(), broker.BucketFiles)
	if err != nil {
		s.t.Fatal(err)
	}
	err = baseline.New(kv).Record(s.t.Context(), s.destinations[0], "AG1", baseline.Success{
		JobID: "before", Rows: 100, Place: fmt.Sprintf("%s@%s:%d:%s", s.sftp.User, s.place.host, s.port, s.folder),
		Files: []baseline.File{{Name: olderFile, Bytes: int64(len(content))}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// begin has a worker deliver a job. end waits for its success, and looks at what
// is left of it.
func (s *story) begin() (id string, end func()) {
	s.t.Helper()
	changes := s.watch()
	stop := s.start()
	id = s.send(s.campaign("A", emails(120, 3), emails(2, 0)))
	return id, func() {
		s.t.Helper()
		s.reaches(id, ledger.Succeeded)
		s.idle()
		stop()
		s.check(id, changes)
	}
}

// die cuts the first worker off from everything, as if it were killed.
func (s *story) die() {
	s.wire.Break()
	s.host.Down()
	s.sftp.Drop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.died = true
}

// successor goes on where the first worker has died. The receiver is there for
// that one too, which must not use it.
func (s *story) successor() {
	s.t.Helper()
	s.host.Up()
	s.url, s.config = s.direct, "second.yaml"
	s.configure()
	s.start()
}

// emails is an inline source of n addresses and some rows without one.
func emails(n, bad int) *attentivev1.Source {
	var b strings.Builder
	b.WriteString("name,email\n")
	for i := range n {
		fmt.Fprintf(&b, "Someone,u%d@example.com\n", i)
	}
	for range bad {
		b.WriteString("Someone,nobody\n")
	}
	return inline(b.String())
}

// says notes what the worker says to the broker about a job, in order; that is
// what fails. What it says by the clock cannot be counted.
func (s *story) says(subject string) bool {
	for _, part := range []string{
		".KV_attentive_owners", "$KV.attentive_owners.", ".KV_attentive_pauses", ".MSG.NEXT.", ".MSG.GET.ATTENTIVE_",
		"$JS.API.STREAM.INFO.", "$JS.API.STREAM.PURGE.", "$JS.API.CONSUMER.", "_INBOX.", "$JS.API.INFO",
	} {
		if strings.Contains(subject, part) {
			return false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, subject)
	return true
}

// isDead reports whether the worker is cut off from everything.
func (s *story) isDead(misfortunes []misfortune) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range misfortunes {
		if m.at == "broker" && m.kills() {
			return len(s.said) >= m.n
		}
	}
	return s.died
}

// afflict has the receiver misbehave, and notes what it is asked.
func (s *story) afflict(misfortunes []misfortune) {
	falls := func(n int, ways ...way) (way, bool) {
		for _, m := range misfortunes {
			if m.at == "receiver" && m.n == n && slices.Contains(ways, m.way) {
				return m.way, true
			}
		}
		return "", false
	}
	hit := func(w way) {
		if w == dies || w == diesAfter {
			s.die()
		}
		s.sftp.Drop()
	}
	s.sftp.Intercept(func(op sftptest.Op, name string) error {
		if op == sftptest.OpOpen && !strings.HasPrefix(path.Base(name), ".") && !strings.HasSuffix(name, ".DONE") {
			s.t.Errorf("%s is written under its final name", name)
		}
		s.mu.Lock()
		s.asked = append(s.asked, op)
		n := len(s.asked)
		s.mu.Unlock()
		w, ok := falls(n, refused, lost, dies)
		if !ok {
			return nil
		}
		if w != refused {
			hit(w)
		}
		return sftp.ErrSSHFxFailure
	})
	s.sftp.Observe(func(op sftptest.Op, _ string) {
		if op == sftptest.OpRename {
			s.arrive()
		}
		s.mu.Lock()
		s.done++
		n := s.done
		s.mu.Unlock()
		if w, ok := falls(n, unanswered, diesAfter); ok {
			hit(w)
		}
	})
}

// arrive notes the files that have got a final name.
func (s *story) arrive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, content := range s.files() {
		if strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".DONE") || name == olderFile || s.published[name] != "" && !s.takes {
			continue
		}
		s.times++
		s.published[name] = s.decrypt(content)
		if s.takes {
			if err := os.Remove(s.sftp.Path(sftptest.Folder + "/" + name)); err != nil {
				s.t.Error(err)
			}
		}
	}
}

// decrypt returns what a file holds; for a file in part it fails.
func (s *story) decrypt(content string) string {
	m, err := openpgp.ReadMessage(strings.NewReader(content), openpgp.EntityList{s.key}, nil, nil)
	if err != nil {
		s.t.Errorf("a file of %d bytes is published that nobody can read: %v", len(content), err)
		return "unreadable"
	}
	b, err := io.ReadAll(m.UnverifiedBody)
	if err != nil {
		s.t.Errorf("a file of %d bytes is published in part: %v", len(content), err)
	}
	return string(b)
}

// watch counts the changes of the ledger by the state that they lead to, up to
// the last one there is when they are asked for.
func (s *story) watch() (changes func() map[ledger.State]int) {
	s.t.Helper()
	kv, err := s.conn.JS.KeyValue(s.t.Context(), broker.BucketLedger)
	if err != nil {
		s.t.Fatal(err)
	}
	keys := ledger.Key(contract.Segment, s.destinations[0], "*")
	watcher, err := kv.Watch(s.t.Context(), keys)
	if err != nil {
		s.t.Fatal(err)
	}
	return func() map[ledger.State]int {
		s.t.Helper()
		stream, err := s.conn.JS.Stream(s.t.Context(), "KV_"+broker.BucketLedger)
		if err != nil {
			s.t.Fatal(err)
		}
		last, err := stream.GetLastMsgForSubject(s.t.Context(), "$KV."+broker.BucketLedger+"."+keys)
		if err != nil {
			s.t.Fatal(err)
		}
		count := map[ledger.State]int{}
		for update := range watcher.Updates() {
			if update == nil { // those of before the watch are told
				continue
			}
			var e ledger.Entry
			if err := json.Unmarshal(update.Value(), &e); err != nil {
				s.t.Error(err)
			}
			count[e.State]++
			if update.Revision() >= last.Sequence {
				break
			}
		}
		if err := watcher.Stop(); err != nil {
			s.t.Error(err)
		}
		return count
	}
}

// addresses returns the file of the first n addresses.
func addresses(segment string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "u%d@example.com,%s\n", i, segment)
	}
	return b.String()
}

// checkKept looks at what is kept of a delivery: rejected rows and baselines.
func (s *story) checkKept(id string) {
	s.t.Helper()
	rejects, err := s.conn.JS.ObjectStore(s.t.Context(), broker.ObjectsRejects)
	if err != nil {
		s.t.Fatal(err)
	}
	object, err := rejects.GetBytes(s.t.Context(), reject.ObjectName(contract.Segment, s.destinations[0], id))
	if err != nil {
		s.t.Errorf("rejected rows: %v", err)
	}
	if n := bytes.Count(object, []byte("\n")); n != 1+3 {
		s.t.Errorf("%d rejected rows are kept, want 3", n-1)
	}
	kv, err := s.conn.JS.KeyValue(s.t.Context(), broker.BucketFiles)
	if err != nil {
		s.t.Fatal(err)
	}
	for segment, rows := range map[string]uint64{"AG1": 120, "AG2": 2} {
		last, err := baseline.New(kv).Last(s.t.Context(), s.destinations[0], segment)
		if err != nil || last.JobID != id || last.Rows != rows {
			s.t.Errorf("last success of %s: %+v, %v; want that of %s with %d rows", segment, last, err, id, rows)
		}
	}
}

// check looks at everything that a delivery leaves behind.
func (s *story) check(id string, changes func() map[ledger.State]int) {
	s.t.Helper()
	s.checkPublished(id)
	left := s.files()
	for f := range left {
		refused := strings.Contains(s.log.String(), "older file of the segment cannot be removed")
		if strings.HasPrefix(f, ".") || f == olderFile && !refused {
			s.t.Errorf("%s is left", f)
		}
	}
	for f := range s.published {
		if _, ok := left[f+".DONE"]; !ok && !s.takes {
			s.t.Errorf("%s has no success file", f)
		}
	}
	if n := changes()[ledger.Succeeded]; n != 1 {
		s.t.Errorf("the job has succeeded %d times in the ledger", n)
	}
	if p := s.entry(id).Progress; p.GetRowsRead() != 125 || p.GetRowsSent() != 122 || p.GetRowsRejected() != 3 {
		s.t.Errorf("progress %v, want 125 rows, 122 sent and 3 rejected", p)
	}
	s.checkKept(id)
	for l, err := range s.dead.List(s.t.Context(), deadletter.Filter{Job: id}) {
		s.t.Errorf("dead letter %v, %v", l.Reason, err)
	}
}

// checkPublished looks at what the receiver has got.
func (s *story) checkPublished(id string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	got := map[string]string{}
	for _, segment := range s.entry(id).Segments {
		for _, f := range segment.GetFiles() {
			got[segment.GetName()] += s.published[f]
		}
	}
	want := map[string]string{"AG1": addresses("AG1", 120), "AG2": addresses("AG2", 2)}
	if diff := cmp.Diff(want, got); diff != "" {
		s.t.Errorf("segments (-want +got):\n%s", diff)
	}
	if s.times != 2 {
		s.t.Errorf("files were published %d times, as %v; want each of two once", s.times, slices.Sorted(maps.Keys(s.published)))
	}
}
