package nats_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	attributesworker "attentive.internal/attributes-worker"
	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/nats/keys"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/logtest"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/sandboxtest"
	"attentive.internal/pkg/worker"
	segmentworker "attentive.internal/segment-worker"
	"github.com/nats-io/nats-server/v2/server"
)

// longest is how long anything may take on a machine that is busy.
const longest = 2 * time.Minute

// site is a broker as nats.conf and accounts.conf have it, with keys of its own,
// and a local Attentive.
type site struct {
	t     *testing.T
	dir   string
	url   string
	said  *record
	logs  map[string]*logtest.Buffer // by user, what a worker says
	relay account.Relay
}

// newSite starts both.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{
		t: t, dir: t.TempDir(), said: &record{used: make(map[string]map[string]bool)},
		logs: map[string]*logtest.Buffer{"segment-worker": {}, "attributes-worker": {}},
	}
	if err := keys.Make(keys.Config{Dir: filepath.Join(s.dir, "keys"), Hosts: []string{"127.0.0.1"}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nats.conf", "accounts.conf"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s.write(name, strings.ReplaceAll(string(text), "/etc/nats", s.dir))
	}
	opts, err := server.ProcessConfigFile(filepath.Join(s.dir, "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	opts.Host, opts.Port, opts.HTTPPort = "127.0.0.1", server.RANDOM_PORT, 0
	opts.StoreDir, opts.NoSigs = t.TempDir(), true
	n, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	n.SetLoggerV2(s.said, true, true, false)
	n.Start()
	t.Cleanup(func() {
		n.Shutdown()
		n.WaitForShutdown()
	})
	if !n.ReadyForConnections(longest) {
		t.Fatal("the broker is not ready")
	}
	s.url = "tls://" + n.Addr().String()

	data := t.TempDir()
	running := sandboxtest.Start(t, account.With(sandbox.Config{Data: data}))
	if s.relay, err = account.RelayFor(running.Sandbox, data); err != nil {
		t.Fatal(err)
	}
	s.write(account.PassphraseFile, account.Passphrase)
	s.write(account.TokenFile, account.Token)
	return s
}

func (s *site) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *site) key(user, file string) string { return filepath.Join(s.dir, "keys", user, file) }

// inbox is where a user is answered: those of the relay itself share one.
func inbox(user string) string {
	if user == "publisher" || user == "reader" {
		return "_INBOX_" + user
	}
	return "_INBOX_relay"
}

// configuration writes the relay's, for one of its users.
func (s *site) configuration(user string) string {
	s.t.Helper()
	r := s.relay
	r.Settle = "1s"
	r.Head = fmt.Sprintf("broker: {url: %q, credentials: {file: %q}, tls: {ca: %q}, inbox_prefix: %s, manage_streams: false}\n"+
		"ops_address: 127.0.0.1:0\n", s.url, s.key(user, keys.Seed), s.key(user, keys.CA), inbox(user))
	return s.write(user+".yaml", r.YAML())
}

// connect connects as a user.
func (s *site) connect(user string) *broker.Conn {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), longest)
	defer cancel()
	c, err := broker.Connect(ctx, broker.Options{
		URL: s.url, Name: user, CredentialsFile: s.key(user, keys.Seed), CAFile: s.key(user, keys.CA), InboxPrefix: inbox(user),
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatalf("connect as %s: %v", user, err)
	}
	s.t.Cleanup(func() {
		c.NC.Close()
		<-c.Closed()
	})
	return c
}

// work runs both workers until the end of the test, or until stop.
func (s *site) work() (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	var running sync.WaitGroup
	for user, run := range map[string]func(context.Context, worker.Options) error{
		"segment-worker": segmentworker.Run, "attributes-worker": attributesworker.Run,
	} {
		file, log := s.configuration(user), s.logs[user]
		running.Go(func() {
			err := run(ctx, worker.Options{
				ConfigFile: file, SweepAfter: time.Second,
				Log: slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn})),
			})
			if err != nil {
				s.t.Errorf("%s: %v", user, err)
			}
			if s.t.Failed() {
				s.t.Logf("%s says:\n%s", user, log)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	s.t.Cleanup(stop)
	return stop
}

// says waits until a worker has said something that holds text.
func (s *site) says(user, text string) {
	s.t.Helper()
	for end := time.Now().Add(longest); !strings.Contains(s.logs[user].String(), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("%s does not say %q in %s", user, text, longest)
		}
	}
}

// record is the broker's log: who published where, and what was refused.
type record struct {
	mu      sync.Mutex                 // guards the rest
	used    map[string]map[string]bool // by public key, what was published to
	refused []string
}

// published is a client's line of the broker's trace.
var published = regexp.MustCompile(`nkey:(U[A-Z2-7]+)" - <<- \[H?PUB (\S+) `)

func (r *record) Noticef(string, ...any) {}
func (r *record) Warnf(string, ...any)   {}
func (r *record) Debugf(string, ...any)  {}
func (r *record) Fatalf(format string, v ...any) {
	panic(fmt.Sprintf(format, v...))
}

func (r *record) Errorf(format string, v ...any) {
	line := fmt.Sprintf(format, v...)
	if !strings.Contains(line, "Violation") {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = append(r.refused, line)
}

func (r *record) Tracef(format string, v ...any) {
	line := fmt.Sprintf(format, v...)
	m := published.FindStringSubmatch(line)
	if m == nil {
		return
	}
	user, subject := m[1], m[2]
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used[user] == nil {
		r.used[user] = make(map[string]bool)
	}
	r.used[user][subject] = true
}

// violations returns what the broker has refused since it was asked last.
func (r *record) violations() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	refused := r.refused
	r.refused = nil
	return refused
}
