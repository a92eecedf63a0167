package segmentworker_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/sandboxtest"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/pkg/worker"
	segmentworker "attentive.internal/segment-worker"
)

// place is a broker, a sandbox and a configuration that joins them.
type place struct {
	t       *testing.T
	dir     string
	broker  *queuetest.Server
	sandbox *sandboxtest.Running
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{t: t, dir: t.TempDir(), broker: queuetest.Start(t), sandbox: sandboxtest.Start(t, sandbox.Config{})}
	p.write("passphrase", sandboxtest.Passphrase)
	p.write("receiver.asc", p.sandbox.PublicKey())
	p.configure("")
	return p
}

// configure writes the configuration; settings are more lines of the
// destination's.
func (p *place) configure(settings string) {
	p.t.Helper()
	host, port, err := net.SplitHostPort(p.sandbox.SFTPAddr())
	if err != nil {
		p.t.Fatal(err)
	}
	p.write("relay.yaml", fmt.Sprintf(`
broker: {url: %s}
ops_address: 127.0.0.1:0
credentials:
- {id: acme-sftp, type: attentive-mobile, hostname: %s, port: %s, username: %s, passphrase: {file: passphrase}, host_keys: [%q]}
destinations:
- id: acme-segments
  name: Acme Attentive Segments
  plugin: attentive
  credential: acme-sftp
  settings:
    client_domain: acme
    identifier: phone
    pgp: {keys: [receiver.asc]}
%s
  templates:
  - {id: default, campaigns: true, filename_template: "{{ campaign_name }}_{{ group_name }}", columns: {phone: mobile}}
`, p.broker.URL, host, port, sandboxtest.Username, p.sandbox.HostKey(), settings))
}

// write replaces a file at once, as an operator's tools do.
func (p *place) write(name, text string) string {
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

// work runs the worker until the end of the test.
func (p *place) work() {
	p.t.Helper()
	p.broker.Conn(p.t) // all streams are there before the first command looks
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- segmentworker.Run(ctx, worker.Options{
			ConfigFile: filepath.Join(p.dir, "relay.yaml"),
			Log:        slog.New(slog.NewTextHandler(p.t.Output(), nil)),
		})
	}()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("worker: %v", err)
		}
	})
}

// result of a command line.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\n%s---\n%s", r.code, r.stdout, r.stderr)
}

// execute runs a command line with the place's configuration.
func (p *place) execute(args ...string) result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := segmentworker.Execute(ctx, append(args, "--config", filepath.Join(p.dir, "relay.yaml")), &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// expect fails the test unless the result has the code and the texts.
func (p *place) expect(r result, code int, texts ...string) {
	p.t.Helper()
	if r.code != code {
		p.t.Fatalf("want exit %d: %v", code, r)
	}
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			p.t.Errorf("%q is missing: %v", text, r)
		}
	}
}

// counts returns the people in each segment of the sandbox.
func (p *place) counts() map[string]int {
	p.t.Helper()
	if err := p.sandbox.Files().Settled(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	counts := make(map[string]int)
	for _, s := range p.sandbox.Segments() {
		counts[s.Name] = s.Count
	}
	return counts
}

const jobID = "7d1e64f0-96e6-4d67-9f2b-5f7a5c1d2e3f"

func TestSendArrives(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.work()
	jeans := p.write("jeans.csv", "name,mobile\nAnn,+12065550101\nBob,+12065550102\nBob again,+12065550102\nNobody,12\n"+people(20))
	shoes := p.write("shoes.ndjson", `{"mobile":"+12065550103"}`+"\n")
	r := p.execute("send", "--destination", "acme-segments", "--campaign", "Winback", "--group", "Jeans="+jeans, "--group", "Shoes="+shoes, "--job", jobID)
	p.expect(r, 0, "Winback_Jeans", "Winback_Shoes", "acme_subscriber_segment_", ".csv.pgp", "1 rejected", "1 duplicate",
		"delivered; Attentive shows it within 24 hours")
	got := p.counts()
	if got["Winback_Jeans"] != 22 || got["Winback_Shoes"] != 1 {
		t.Errorf("segments = %v, want 22 in Winback_Jeans and 1 in Winback_Shoes", got)
	}
	// The same again is the same job: it is followed, and nothing is sent.
	again := p.execute("send", "--destination", "acme-segments", "--campaign", "Winback", "--group", "Jeans="+jeans, "--group", "Shoes="+shoes, "--job", jobID)
	p.expect(again, 0, "was published before", "delivered")
	if files := p.sandbox.Files().Files(); len(files) != 2 {
		t.Errorf("%d files arrived, want 2", len(files))
	}
}

// people are rows of different people.
func people(n int) string {
	var rows strings.Builder
	for i := range n {
		fmt.Fprintf(&rows, "Somebody,+1206555%04d\n", 1000+i)
	}
	return rows.String()
}

func TestDeadLetterIsReplayedToSuccess(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.work()
	send := []string{
		"send", "--destination", "acme-segments", "--segment", "VIP", "--job", jobID,
		"--group", "VIP=" + p.write("vip.csv", "mobile\n030 23125001\n030 23125002\n"),
	}
	// Without their region, numbers of Berlin are no numbers: the job fails.
	p.expect(p.execute(send...), 3, "dead-lettered", "too_many_rejects", "dead-letters replay --all --job "+jobID)
	p.expect(p.execute("dead-letters", "list"), 0, jobID, "too_many_rejects", "acme-segments", "1 in all: too_many_rejects 1")
	p.expect(p.execute("dead-letters", "replay", "--all", "--dry-run"), 0, "would_replay")

	p.configure("    default_region: DE")
	p.expect(p.execute("dead-letters", "replay", "--all", "--job", jobID), 0, "replayed: to attentive.v1.segment.acme-segments")
	deadline := time.Now().Add(time.Minute)
	for {
		r := p.execute(send...)
		if r.code == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(r)
		}
		// The worker may have taken the replay before it saw the configuration.
		p.expect(p.execute("dead-letters", "replay", "--all"), 0)
	}
	if got := p.counts(); got["VIP"] != 2 {
		t.Errorf("segments = %v, want 2 people in VIP", got)
	}
	p.expect(p.execute("dead-letters", "list"), 0, "no dead letters")
	p.expect(p.execute("dead-letters", "replay", "1"), 0, "gone")
}

// repair calls repair once, when it is told of a block.
type repair struct {
	bytes.Buffer
	repair func()
}

func (r *repair) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "blocked (log_in_refused)") {
		r.repair()
	}
	return r.Buffer.Write(b)
}

func TestSendOutlivesAWrongPassword(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.write("passphrase", "wrong")
	p.work()
	vip := p.write("vip.csv", "mobile\n+12065550101\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stdout bytes.Buffer
	stderr := &repair{repair: func() { p.write("passphrase", sandboxtest.Passphrase) }}
	code := segmentworker.Execute(ctx, []string{
		"send", "--destination", "acme-segments", "--segment", "VIP", "--group", "VIP=" + vip, "--config", filepath.Join(p.dir, "relay.yaml"),
	}, &stdout, stderr)
	p.expect(result{code, stdout.String(), stderr.String()}, 0, "correct the user name or the secret", "it goes on by itself once that is repaired", "delivered")
	if got := p.counts(); got["VIP"] != 1 {
		t.Errorf("segments = %v, want 1 in VIP", got)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.expect(p.execute("check"), 0,
		"ok       broker: connect:",
		"warning  broker: streams:",
		"ok       destination acme-segments: pgp keys:",
		"ok       credential acme-sftp: log in:",
		"ok       credential acme-sftp: folder: /uploads has 0 entries",
		"ok       credential acme-sftp: write and rename:")
	if files := p.sandbox.Files().Files(); len(files) != 0 {
		t.Errorf("check left %v", files)
	}
	p.write("receiver.asc", p.key(10*24*time.Hour))
	p.expect(p.execute("check"), 0, "warning  destination acme-segments: pgp keys:", "usable for 9 days", "ask the receiver for the next key")
	p.write("receiver.asc", p.key(-time.Hour))
	p.expect(p.execute("check"), 1, "failed   destination acme-segments: pgp keys:", "expired on", "configure a current public key of the receiver")
	p.write("receiver.asc", p.sandbox.PublicKey())
	p.write("passphrase", "wrong")
	p.expect(p.execute("check"), 1, "failed   credential acme-sftp: log in:", "correct the user name or the secret")
	p.configure("    remote_folder: /nowhere")
	p.write("passphrase", sandboxtest.Passphrase)
	p.expect(p.execute("check"), 1, "failed   credential acme-sftp: folder:", "create the folder or correct the setting")
}

// key returns a public key that lasts that much longer.
func (p *place) key(lasts time.Duration) string {
	p.t.Helper()
	made := time.Now().Add(-48 * time.Hour)
	lifetime := uint32((48*time.Hour + lasts).Seconds())
	e, err := openpgp.NewEntity("Receiver", "", "receiver@example.com", &packet.Config{
		Time: func() time.Time { return made }, KeyLifetimeSecs: lifetime, Algorithm: packet.PubKeyAlgoEdDSA,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	var out bytes.Buffer
	if err := e.Serialize(&out); err != nil {
		p.t.Fatal(err)
	}
	return out.String()
}

func TestCheckRefusesAStranger(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	other := sftptest.Start(t, sftptest.Config{})
	path := filepath.Join(p.dir, "relay.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p.write("relay.yaml", strings.ReplaceAll(string(text), p.sandbox.HostKey(), other.HostKeys[0]))
	r := p.execute("check", "--json")
	p.expect(r, 1, `"subject":"credential acme-sftp","step":"log in"`, "ssh-keyscan", "host_keys")
	if strings.Contains(r.stdout, "folder") {
		t.Errorf("the folder of a stranger is looked at: %v", r)
	}
}

func TestCheckRemovesWhatItCannotRename(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	server := sftptest.Start(t, sftptest.Config{})
	server.Intercept(func(op sftptest.Op, _ string) error {
		if op == sftptest.OpRename {
			return os.ErrPermission
		}
		return nil
	})
	p.write("passphrase", server.Password)
	p.write("relay.yaml", fmt.Sprintf(`
broker: {url: %s}
credentials:
- {id: acme-sftp, type: attentive-mobile, hostname: %s, port: %d, username: %s, passphrase: {file: passphrase}, host_keys: [%q]}
destinations:
- id: acme-segments
  name: Acme Segments
  plugin: attentive
  credential: acme-sftp
  settings: {client_domain: acme, identifier: phone}
  templates: [{id: default, columns: {phone: mobile}}]
`, p.broker.URL, server.Host, server.Port, server.User, server.HostKeys[0]))
	p.expect(p.execute("check"), 1, "ok       credential acme-sftp: folder:", "failed   credential acme-sftp: write and rename:", "ask the receiver for the right to write, rename and remove files there")
	left, err := os.ReadDir(server.Path(sftptest.Folder))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 0 {
		t.Errorf("check left %v", left)
	}
}

func TestSendIsExplained(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	vip := p.write("vip.csv", "mobile\n+12065550101\n")
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no group", nil, 2, "no --group: name at least one group and its file"},
		{"no file", []string{"--group", "VIP"}, 2, `--group "VIP": want the group's name, an equals sign and its file`},
		{"no name", []string{"--group", "=" + vip}, 2, "want the group's name"},
		{"same name", []string{"--group", "VIP=" + vip, "--group", "VIP=" + vip}, 2, "two groups of this name"},
		{"large sample", []string{"--group", "VIP=" + vip, "--sample", "5000"}, 2, "sample_rows"},
		{"column", []string{"--group", "VIP=" + p.write("other.csv", "phone\n1\n")}, 3, `column "mobile"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := &place{t: t, dir: p.dir}
			p.expect(p.execute(append([]string{"send", "--destination", "acme-segments", "--campaign", "Winback"}, tt.args...)...), tt.code, tt.want)
		})
	}
}
