package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/logtest"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/pkg/worker"
	segmentworker "attentive.internal/segment-worker"
)

// patience is how long a test waits for what must come.
const patience = 90 * time.Second

// Leases: a short one where its owner is to lose it, a long one where a slow machine
// is not to, and one between for two owners of which the first dies: the second waits
// for the longer of both leases, and is not to lose its own.
const (
	impatient = "3s"
	mortal    = "5s"
	patient   = "10s"
)

// place is a broker, a receiver, and a configuration that joins them.
type place struct {
	global string // keys of the configuration beside those of credentials and destinations
	t      *testing.T
	direct string // address of the broker
	url    string // of the broker, for the worker
	conn   *broker.Conn
	ledger *ledger.Ledger
	client *publish.Client
	dead   *deadletter.Store
	sftp   *sftptest.Server
	dir    string
	log    *logtest.Buffer
	now    func() time.Time // of workers put together by hand; nil for time.Now

	// What the next configure writes, and where; set before.
	config       string
	lease        string
	host         string
	port         int
	hostKey      string
	user         string
	secret       string // how the credential logs in
	folder       string
	local        string // where the folder is on this machine; empty: of sftp
	domain       string
	identifier   string
	columns      string
	settings     string // of every destination
	template     string // of every destination: more keys
	destinations []string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	return at(t, queuetest.Start(t), "acme")
}

// sideBySide calls run for 0 to n-1, several at a time, because most of the time
// they wait. Each broker serves a few of them: all workers of a broker hear of
// each other.
func sideBySide(t *testing.T, n int, run func(server *queuetest.Server, i int)) {
	t.Helper()
	const brokers, each = 6, 2
	next := make(chan int)
	var running sync.WaitGroup
	defer running.Wait()
	for range min(brokers, n) {
		server := queuetest.Start(t)
		for range each {
			running.Go(func() {
				for i := range next {
					run(server, i)
				}
			})
		}
	}
	for i := range n {
		next <- i
	}
	close(next)
}

// at returns a place at a broker that others may share, under other
// destinations.
func at(t *testing.T, s *queuetest.Server, destinations ...string) *place {
	t.Helper()
	c := s.Conn(t)
	var err error
	// What a test asks is answered in the end. A request of a worker is given up after
	// five seconds, and made again.
	if c.JS, err = jetstream.New(c.NC, jetstream.WithDefaultTimeout(patience)); err != nil {
		t.Fatal(err)
	}
	kv, err := c.JS.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	p := &place{
		t: t, direct: s.URL, url: s.URL, conn: c, ledger: ledger.New(kv), client: publish.New(c), dead: deadletter.New(c, "test"),
		sftp: sftptest.Start(t, sftptest.Config{}), dir: t.TempDir(), log: &logtest.Buffer{},
		config: "relay.yaml", lease: patient, folder: sftptest.Folder, domain: "shop", identifier: "phone", columns: "phone: mobile", destinations: destinations,
	}
	p.host, p.port, p.hostKey = p.sftp.Host, p.sftp.Port, p.sftp.HostKeys[0]
	p.user, p.secret = p.sftp.User, "passphrase: {file: passphrase}"
	p.file("passphrase", p.sftp.Password)
	p.configure()
	return p
}

// openSSH has an OpenSSH server be the receiver, whose folder is local.
func (p *place) openSSH(s *sftptest.OpenSSH, local string) {
	p.t.Helper()
	p.host, p.port, p.hostKey, p.folder, p.local = s.Host, s.Port, s.HostKeys[0], s.Folder, local
	p.user, p.secret = s.User, "private_key: {file: id}"
	p.file("id", s.PrivateKey)
}

// proFTPD has a ProFTPD be the receiver.
func (p *place) proFTPD(s *sftptest.ProFTPD) {
	p.t.Helper()
	p.host, p.port, p.hostKey, p.folder, p.local = s.Host, s.Port, s.HostKeys[0], s.Folder, s.Folder
	p.user = s.User
	p.file("passphrase", s.Password)
}

// file replaces a file at once, as an operator's tools do, and returns its path.
func (p *place) file(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// configure writes the configuration.
func (p *place) configure() {
	p.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `
lease: %s
ops_address: 127.0.0.1:0
broker: {url: %s}
source_prefixes: ["file://%s/"]
%s
credentials:
- {id: sftp, type: attentive-mobile, hostname: %s, port: %d, username: %s, %s, host_keys: [%q]}
destinations:
`, p.lease, p.url, p.dir, p.global, p.host, p.port, p.user, p.secret, p.hostKey)
	for _, d := range p.destinations {
		fmt.Fprintf(&b, `- id: %s
  name: Segments
  plugin: attentive
  credential: sftp
  settings: {client_domain: %s, identifier: %s, remote_folder: %s%s}
  templates: [{id: default, campaigns: true, columns: {%s}%s}]
`, d, p.domain, p.identifier, p.folder, more(p.dated()), p.columns, more(p.template))
	}
	p.file(p.config, b.String())
}

// dated returns the settings with a time zone in which no day ends for hours, for
// tests know their files by the date. One whose names are those of another zone says
// so itself.
func (p *place) dated() string {
	if strings.Contains(p.settings, "time_zone:") {
		return p.settings
	}
	return "time_zone: " + zone() + more(p.settings)
}

// zone is one in which it was noon, or an hour later, when these tests began.
var zone = sync.OnceValue(func() string {
	return fmt.Sprintf("Etc/GMT%+d", time.Now().UTC().Hour()-12) // their signs are the other way round
})

// today is the date in names of files.
func today() time.Time {
	location, err := time.LoadLocation(zone())
	if err != nil {
		panic(err)
	}
	return time.Now().In(location)
}

func more(keys string) string {
	if keys == "" {
		return ""
	}
	return ", " + keys
}

// start runs the worker until stop is called or the test ends.
func (p *place) start() (stop func()) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	done := make(chan error, 1)
	file := filepath.Join(p.dir, p.config)
	go func() {
		done <- segmentworker.Run(ctx, worker.Options{ConfigFile: file, Log: slog.New(slog.NewTextHandler(p.log, nil))})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("Run = %v", err)
		}
	})
	p.t.Cleanup(stop)
	return stop
}

// csv is an inline source of numbers 0 to n-1 of an area.
func csv(area, n int) *attentivev1.Source {
	var b strings.Builder
	b.WriteString("name,mobile\n")
	for i := range n {
		fmt.Fprintf(&b, "Someone,%s\n", phone(area, i))
	}
	return inline(b.String())
}

// phone returns a valid number.
func phone(area, i int) string { return fmt.Sprintf("+1%d555%04d", area, i) }

// rows returns the file of numbers 0 to n-1 of an area.
func rows(segment string, area, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s,%s\n", phone(area, i), segment)
	}
	return b.String()
}

func inline(text string) *attentivev1.Source {
	return &attentivev1.Source{Location: &attentivev1.Source_Inline{Inline: []byte(text)}, Format: attentivev1.Format_FORMAT_CSV}
}

// fileSource is a CSV source in the place's directory.
func (p *place) fileSource(name string) *attentivev1.Source {
	return &attentivev1.Source{
		Location: &attentivev1.Source_Url{Url: "file://" + filepath.Join(p.dir, name)}, Format: attentivev1.Format_FORMAT_CSV,
	}
}

// orchestration is a job for one segment.
func (p *place) orchestration(segment string, sources ...*attentivev1.Source) *attentivev1.SegmentJob {
	j := p.newJob(sources)
	j.Origin = &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: segment}}
	return j
}

// campaign is a job for groups G1, G2 and so on.
func (p *place) campaign(name string, sources ...*attentivev1.Source) *attentivev1.SegmentJob {
	j := p.newJob(sources)
	j.Origin = &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: name}}
	return j
}

func (p *place) newJob(sources []*attentivev1.Source) *attentivev1.SegmentJob {
	j := &attentivev1.SegmentJob{Id: uuid.NewString(), Destination: p.destinations[0], Template: "default"}
	for i, s := range sources {
		j.Groups = append(j.Groups, &attentivev1.Group{Name: fmt.Sprintf("G%d", i+1), Source: s})
	}
	return j
}

// send publishes a job and returns its id.
func (p *place) send(j *attentivev1.SegmentJob) string {
	p.t.Helper()
	if _, err := p.client.SegmentJob(p.t.Context(), j); err != nil {
		p.t.Fatal(err)
	}
	return j.GetId()
}

// sparingly returns a condition to wait for that asks the broker, which the worker
// needs as well: the longer it takes, the less often it is asked for. It is seen a
// twentieth late at most.
func sparingly(condition func() bool) func() bool {
	var next time.Time
	began := time.Now()
	return func() bool {
		if time.Now().Before(next) {
			return false
		}
		met := condition()
		next = time.Now().Add(min(time.Since(began)/20, 100*time.Millisecond))
		return met
	}
}

func (p *place) eventually(what string, condition func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: not within %v; files %q; log:\n%s", what, patience, slices.Sorted(maps.Keys(p.files())), p.log)
		}
	}
}

// entry returns what the ledger holds of a job of any of the destinations.
func (p *place) entry(id string) ledger.Entry {
	p.t.Helper()
	for _, d := range p.destinations {
		record, ok, err := p.ledger.Find(p.t.Context(), contract.Segment, d, id)
		if err != nil {
			p.t.Fatal(err)
		}
		if ok {
			return record.Entry()
		}
	}
	return ledger.Entry{}
}

// reaches waits until a job is in a state.
func (p *place) reaches(id string, want ledger.State) ledger.Entry {
	p.t.Helper()
	p.eventually("job in state "+string(want), sparingly(func() bool {
		e := p.entry(id)
		if e.State.Terminal() && e.State != want {
			p.t.Fatalf("job is %s (%s: %s), want %s; log:\n%s", e.State, e.Reason, e.Detail, want, p.log)
		}
		return e.State == want
	}))
	return p.entry(id)
}

// delivers publishes a job and waits for its success.
func (p *place) delivers(j *attentivev1.SegmentJob) ledger.Entry {
	p.t.Helper()
	return p.reaches(p.send(j), ledger.Succeeded)
}

// refuses publishes a job and waits until it is dead-lettered for a reason.
func (p *place) refuses(j *attentivev1.SegmentJob, reason, text string) ledger.Entry {
	p.t.Helper()
	e := p.reaches(p.send(j), ledger.DeadLettered)
	p.isRefused(e, reason, text)
	return e
}

func (p *place) isRefused(e ledger.Entry, reason, text string) {
	p.t.Helper()
	if string(e.Reason) != reason || !strings.Contains(e.Detail, text) {
		p.t.Errorf("dead-lettered as %s: %q; want %s with %q", e.Reason, e.Detail, reason, text)
	}
}

// replays puts the dead letter of a job back, and waits until it is worked on.
func (p *place) replays(id string, mode deadletter.Mode) {
	p.t.Helper()
	p.idle() // nothing of it is under way
	before := p.entry(id).Updated
	for l, err := range p.dead.List(p.t.Context(), deadletter.Filter{Job: id}) {
		if err != nil {
			p.t.Fatal(err)
		}
		if got, err := p.dead.Replay(p.t.Context(), l.ID, mode); err != nil || got != deadletter.Replayed {
			p.t.Fatalf("replay = %v, %v", got, err)
		}
		p.eventually("begin of the replay", sparingly(func() bool { return !p.entry(id).Updated.Equal(before) }))
		return
	}
	p.t.Fatalf("job %s has no dead letter", id)
}

// blocked waits until upstream was told that a job waits for a reason.
func (p *place) blocked(id, reason, text string) {
	p.t.Helper()
	p.eventually("block "+reason, sparingly(func() bool {
		return slices.ContainsFunc(p.events(id), func(e *attentivev1.JobEvent) bool {
			return e.GetState() == attentivev1.JobState_JOB_STATE_BLOCKED && e.GetReason() == reason && strings.Contains(e.GetText(), text)
		})
	}))
}

// events returns what upstream was told of a job.
func (p *place) events(id string) []*attentivev1.JobEvent {
	p.t.Helper()
	s, err := p.conn.JS.Stream(p.t.Context(), broker.StreamEvents)
	if err != nil {
		p.t.Fatal(err)
	}
	var list []*attentivev1.JobEvent
	for next := uint64(1); ; {
		m, err := s.GetMsg(p.t.Context(), next, jetstream.WithGetMsgSubject(contract.EventSubject(contract.Segment, "*", id)))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return list
		}
		if err != nil {
			p.t.Fatal(err)
		}
		next = m.Sequence + 1
		e := &attentivev1.JobEvent{}
		if err := proto.Unmarshal(m.Data, e); err != nil {
			p.t.Fatal(err)
		}
		list = append(list, e)
	}
}

// states returns the states that upstream was told of, the same ones in a row
// once.
func (p *place) states(id string) string {
	var list []string
	for _, e := range p.events(id) {
		list = append(list, strings.TrimPrefix(e.GetState().String(), "JOB_STATE_"))
	}
	return strings.Join(slices.Compact(list), " ")
}

// path of a file in the receiver's folder.
func (p *place) path(file string) string {
	if p.local != "" {
		return filepath.Join(p.local, file)
	}
	return filepath.Join(p.sftp.Path(p.folder), file)
}

// files returns what lies in the receiver's folder: contents by name.
func (p *place) files() map[string]string {
	p.t.Helper()
	files := map[string]string{}
	entries, err := os.ReadDir(p.path(""))
	if err != nil {
		return files
	}
	for _, e := range entries {
		b, err := os.ReadFile(p.path(e.Name()))
		if err == nil { // else renamed or removed meanwhile
			files[e.Name()] = string(b)
		}
	}
	return files
}

// temporary returns the names that no receiver reads.
func (p *place) temporary() (names []string) {
	for name := range p.files() {
		if strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	return names
}

// name of the n-th file of today.
func name(n int) string { return fileOf(today(), n) }

func fileOf(day time.Time, n int) string {
	return fmt.Sprintf("shop_subscriber_segment_%s_%d.csv", day.Format("20060102"), n)
}

// idle waits until the queue of the place's destinations is empty.
func (p *place) idle() {
	p.t.Helper()
	s, err := p.conn.JS.Stream(p.t.Context(), broker.StreamJobs)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, d := range p.destinations {
		subject := contract.JobSubject(contract.Segment, d)
		p.eventually("empty queue", sparingly(func() bool {
			info, err := s.Info(p.t.Context(), jetstream.WithSubjectFilter(subject))
			return err == nil && info.State.Subjects[subject] == 0
		}))
	}
}
