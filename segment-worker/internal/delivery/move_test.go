package delivery_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox/sftpd"
)

// account is an SFTP account of the sandbox.
type account struct {
	user    string
	folder  string // local
	address string
	hostKey string
	network *queuetest.Proxy
	server  *sftpd.Server
}

// account starts one that tells arrived of each file that was written or renamed.
func (p *place) account(user, root string, arrived func(folder, name string)) *account {
	p.t.Helper()
	a := &account{user: user, folder: filepath.Join(root, sftpd.Uploads)}
	var err error
	a.server, err = sftpd.Open(sftpd.Config{
		Root: root, HostKey: filepath.Join(p.t.TempDir(), "hostkey"), Username: user, Passphrase: p.sftp.Password,
		Arrived: func(name string) { arrived(a.folder, name) },
	})
	if err != nil {
		p.t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(p.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(p.t.Context()))
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := a.server.Serve(ctx, l); err != nil {
			p.t.Error(err)
		}
	})
	p.t.Cleanup(func() {
		stop()
		serving.Wait()
		if err := a.server.Close(); err != nil {
			p.t.Error(err)
		}
	})
	a.hostKey = a.server.HostKey()
	a.network = queuetest.StartProxy(p.t, "nats://"+l.Addr().String()) // forwards any protocol
	a.address = strings.TrimPrefix(a.network.URL, "nats://")
	return a
}

// configureAt writes a configuration that knows the accounts, and in which the
// destination logs in to the last of them.
func (p *place) configureAt(accounts ...*account) {
	p.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "lease: %s\nops_address: 127.0.0.1:0\nbroker: {url: %s}\ncredentials:\n", p.lease, p.url)
	for _, a := range accounts {
		host, port, err := net.SplitHostPort(a.address)
		if err != nil {
			p.t.Fatal(err)
		}
		fmt.Fprintf(&b, "- {id: %s, type: attentive-mobile, hostname: %s, port: %s, username: %s, passphrase: {file: passphrase}, host_keys: [%q]}\n",
			a.user, host, port, a.user, a.hostKey)
	}
	fmt.Fprintf(&b, `destinations:
- id: %s
  name: Segments
  plugin: attentive
  credential: %s
  settings: {client_domain: %s, identifier: phone}
  templates: [{id: default, campaigns: true, columns: {phone: mobile}}]
`, p.destinations[0], accounts[len(accounts)-1].user, p.domain)
	p.file(p.config, b.String())
}

// stage is how far the first job has come when its destination is moved.
type stage struct {
	name string
	// uploaded and published are files of the first job, of three, that have
	// arrived when its worker dies. Both zero: none dies.
	uploaded, published int
	// waits: the job waits for the right to rename, and the worker is stopped.
	waits bool
}

func (s stage) begun() bool { return s.waits || s.uploaded > 0 }

func (s stage) dies() bool { return s.uploaded > 0 }

func (s stage) publishing() bool { return s.waits || s.published > 0 }

// TestMovedDestination moves a destination to another log-in, with a backlog
// waiting and its first job under way: all of it arrives, once and in order. The
// exception is a job of which some may be published at a place that nobody can
// look at any more: that one waits for somebody who knows.
func TestMovedDestination(t *testing.T) {
	t.Parallel()
	var moves []*move
	for _, stage := range []stage{
		{name: "nothing begun"},
		{name: "uploading the second file", uploaded: 1},
		{name: "all uploaded", uploaded: 3},
		{name: "about to publish", waits: true},
		{name: "one of three published", uploaded: 3, published: 1},
		{name: "all published", uploaded: 3, published: 3},
	} {
		for n := range 8 {
			m := &move{stage: stage, twoRoots: n&1 > 0, removed: n&2 > 0, taken: n&4 > 0}
			if m.taken && stage.published == 0 {
				continue // there is nothing to take before the end
			}
			moves = append(moves, m)
		}
	}
	sideBySide(t, len(moves), func(server *queuetest.Server, i int) {
		m := moves[i]
		t.Run(m.String(), func(t *testing.T) {
			m.place = at(t, server, fmt.Sprintf("d%d", i))
			m.domain = m.destinations[0]
			m.run()
		})
	})
}

// move is one destination that is moved.
type move struct {
	*place
	stage    stage
	twoRoots bool // the accounts have different ones
	removed  bool // the old credential is, from the configuration
	taken    bool // files are, as soon as they are published

	wire *queuetest.Tripwire // of the worker that dies
	old  *account
	jobs []string

	mu       sync.Mutex // guards the rest
	uploaded int        // files that arrived
	arrived  map[string][]string
	folders  []string // of the published files
}

func (m *move) String() string {
	return fmt.Sprintf("%s, two roots %v, old credential removed %v, files taken %v", m.stage.name, m.twoRoots, m.removed, m.taken)
}

func (m *move) run() {
	m.arrived = map[string][]string{}
	if m.stage.dies() {
		m.mortal()
	}
	root := m.t.TempDir()
	m.old = m.account("before", root, m.note)
	newRoot := root
	if m.twoRoots {
		newRoot = m.t.TempDir()
	}
	moved := m.account("after", newRoot, m.note)
	m.configureAt(m.old)
	m.begin()

	m.url, m.config = m.direct, "moved.yaml"
	m.configureAt(m.old, moved)
	if m.removed {
		m.configureAt(moved)
	}
	m.old.network.Up()
	m.start()
	m.end()
	for _, a := range []*account{m.old, moved} {
		if a == m.old && m.twoRoots && m.removed {
			continue // what lies there is out of reach
		}
		if left, err := filepath.Glob(a.folder + "/.relay*"); err != nil || len(left) > 0 {
			m.t.Errorf("%v are left, %v", left, err)
		}
	}
}

// mortal has the next worker that is configured die when it is time.
func (m *move) mortal() {
	m.t.Helper()
	m.wire = queuetest.StartTripwire(m.t, m.direct, queuetest.Trip{Counts: func(string) bool { return false }})
	m.url, m.lease = m.wire.URL, mortal
}

// dies waits until a worker has died.
func (m *move) dies() {
	m.t.Helper()
	m.eventually("death", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.due()
	})
}

// due reports whether the stage is reached; the lock is held.
func (m *move) due() bool {
	return m.uploaded >= m.stage.uploaded && len(m.folders) >= m.stage.published
}

// begin publishes the jobs and lets the first one come to its stage.
func (m *move) begin() {
	if m.stage.waits {
		m.old.server.Misbehave(sftpd.Misbehaviour{RefuseRename: true})
	}
	var stop func()
	if m.stage.begun() {
		stop = m.start()
	}
	for n := range 3 {
		m.jobs = append(m.jobs, m.send(m.campaign("A", csv(212, 200+n), csv(213, 2+n), csv(214, 3+n))))
	}
	switch {
	case m.stage.waits:
		m.blocked(m.jobs[0], "folder_unusable", "rename")
		stop()
		m.old.server.Misbehave(sftpd.Misbehaviour{})
	case m.stage.begun():
		m.dies()
	}
}

// note notes a file that has arrived, and kills the first worker when it is time.
func (m *move) note(folder, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.due()
	if strings.HasPrefix(name, ".") {
		m.uploaded++
	} else {
		m.publish(folder, name)
	}
	if m.due() && !before && m.wire != nil {
		m.wire.Break()
		m.old.network.Down()
	}
}

// publish notes a file that got a final name.
func (m *move) publish(folder, name string) {
	content, err := os.ReadFile(filepath.Join(folder, name))
	if err == nil && m.taken {
		err = os.Remove(filepath.Join(folder, name))
	}
	if err != nil {
		m.t.Error(err)
	}
	_, segment, _ := strings.Cut(strings.TrimSpace(string(content)), ",")
	segment, _, _ = strings.Cut(segment, "\n")
	m.arrived[segment] = append(m.arrived[segment], string(content))
	m.folders = append(m.folders, folder)
}

// unknown reports whether nobody can find out what became of the first job.
func (m *move) unknown() bool {
	seen := !m.twoRoots && (m.stage.published < 3 || !m.taken)
	return m.stage.publishing() && m.removed && !seen
}

// end waits until all is done, and looks at what has arrived.
func (m *move) end() {
	for n, id := range m.jobs {
		if n > 0 || !m.unknown() {
			m.reaches(id, ledger.Succeeded)
			continue
		}
		m.isRefused(m.reaches(id, ledger.DeadLettered), "outcome_unknown", "before@127.0.0.1")
	}
	m.idle()
	want := map[string][]string{}
	for i, segment := range []string{"AG1", "AG2", "AG3"} {
		for n := range m.jobs {
			if n == 0 && m.unknown() && i >= m.stage.published {
				continue // it was not published before
			}
			want[segment] = append(want[segment], rows(segment, 212+i, []int{200, 2, 3}[i]+n))
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if diff := cmp.Diff(want, m.arrived); diff != "" {
		m.t.Errorf("arrived (-want +got):\n%s\nlog:\n%s", diff, m.log)
	}
	// Of the first job, all files are where the first one was.
	for i, folder := range m.folders[:3] {
		if atOld := folder == m.old.folder; m.twoRoots && !m.unknown() && atOld != (m.stage.published > 0) {
			m.t.Errorf("file %d of the first job is in %s", i+1, folder)
		}
	}
	for l, err := range m.dead.List(m.t.Context(), deadletter.Filter{Destination: m.destinations[0]}) {
		if err != nil || !m.unknown() || l.Job != m.jobs[0] {
			m.t.Errorf("dead letter %+v, %v", l, err)
		}
	}
}

// waiting returns a move whose one job is about to be published, with its worker
// stopped.
func waiting(t *testing.T) *move {
	t.Helper()
	m := &move{place: newPlace(t), arrived: map[string][]string{}}
	m.old = m.account("before", t.TempDir(), m.note)
	m.old.server.Misbehave(sftpd.Misbehaviour{RefuseRename: true})
	m.configureAt(m.old)
	stop := m.start()
	m.jobs = []string{m.send(m.campaign("A", csv(212, 2)))}
	m.blocked(m.jobs[0], "folder_unusable", "rename")
	stop()
	m.old.server.Misbehave(sftpd.Misbehaviour{})
	return m
}

// once checks that the one job has succeeded and its file has arrived once.
func (m *move) once() {
	m.t.Helper()
	m.reaches(m.jobs[0], ledger.Succeeded)
	m.mu.Lock()
	defer m.mu.Unlock()
	if diff := cmp.Diff(map[string][]string{"AG1": {rows("AG1", 212, 2)}}, m.arrived); diff != "" {
		m.t.Errorf("arrived (-want +got):\n%s", diff)
	}
}

// TestReplayOfAnUnknownOutcome: who has looked may send the job again.
func TestReplayOfAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	m := waiting(t)
	m.configureAt(m.account("after", t.TempDir(), m.note))
	m.start()
	m.reaches(m.jobs[0], ledger.DeadLettered)
	m.replays(m.jobs[0], deadletter.Guarded)
	m.once()
}

// TestOldLogInThatIsRefused: the job waits for a repair, or for being given up by
// the removal of the credential.
func TestOldLogInThatIsRefused(t *testing.T) {
	t.Parallel()
	for _, repaired := range []bool{true, false} {
		t.Run(fmt.Sprintf("repaired %v", repaired), func(t *testing.T) {
			t.Parallel()
			m := waiting(t)
			moved := m.account("after", t.TempDir(), m.note)
			m.old.server.Misbehave(sftpd.Misbehaviour{RefuseLogin: true})
			m.configureAt(m.old, moved)
			m.start()
			m.blocked(m.jobs[0], "log_in_refused", "remove the credential")
			if repaired {
				m.old.server.Misbehave(sftpd.Misbehaviour{})
				m.once()
				return
			}
			m.configureAt(moved)
			m.isRefused(m.reaches(m.jobs[0], ledger.DeadLettered), "outcome_unknown", "segment \"AG1\"")
		})
	}
}

// TestDeathAfterTheMove: the new log-in finds the files in the folder of the
// old one, publishes them, and dies before the ledger knows; the receiver has
// taken them away.
func TestDeathAfterTheMove(t *testing.T) {
	t.Parallel()
	m := waiting(t)
	moved := m.account("after", filepath.Dir(m.old.folder), m.note)
	m.taken, m.stage.published = true, 1
	m.mortal()
	m.configureAt(moved)
	m.start()
	m.dies()
	m.url, m.config = m.direct, "second.yaml"
	m.configureAt(moved)
	m.start()
	m.once()
}
