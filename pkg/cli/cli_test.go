package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"attentive.internal/pkg/cli"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/worker"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

const jobID = "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"

// desk is where command lines are typed: a configuration and a program.
type desk struct {
	t       *testing.T
	dir     string
	program cli.Program
}

// newDesk returns one whose configuration names the broker at url.
func newDesk(t *testing.T, url string) *desk {
	t.Helper()
	d := &desk{t: t, dir: t.TempDir()}
	d.program = cli.Program{
		Name: "stand-in", Short: "Play a worker", Plugin: config.PluginSegments, Kind: contract.Segment,
		Run: func(context.Context, worker.Options) error { return nil },
		Check: func(context.Context, *config.Config) iter.Seq[cli.Trial] {
			return func(func(cli.Trial) bool) {}
		},
		Send: cli.Send{Example: "  PROGRAM send", NameFlag: "segment", NameUsage: "name of the segment", Flags: sendFlags},
	}
	d.write("passphrase", "secret")
	d.write("relay.yaml", fmt.Sprintf(`
broker: {url: %s}
credentials:
- {id: acme-sftp, type: attentive-mobile, username: acme, passphrase: {file: passphrase}, known_hosts: known_hosts}
- {id: acme-api, type: attentive-api, api_key: {file: passphrase}}
destinations:
- id: acme
  name: Acme Segments
  plugin: attentive
  credential: acme-sftp
  settings: {client_domain: acme, identifier: phone}
  templates:
  - {id: default, campaigns: true, columns: {phone: mobile}}
  - {id: queries, columns: {phone: mobile}}
- id: acme-attributes
  plugin: attentive-api
  credential: acme-api
  settings: {identifier: phone}
  templates: [{id: default, columns: {phone: mobile}}]
`, url))
	d.write("known_hosts", "sftp.attentivemobile.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHNqb3DTWIGsPcVVXfNa1sYVVnHkqYZqWaJJBxHq9yzA\n")
	return d
}

// sendFlags is what segment-worker's send is like.
func sendFlags(f *pflag.FlagSet) cli.Compose {
	paths := f.StringArray("group", nil, "file of a group")
	return func(h cli.Head) (cli.Order, error) {
		if len(*paths) == 0 {
			return cli.Order{}, errors.New("no --group")
		}
		job := &attentivev1.SegmentJob{Id: h.ID, Destination: h.Destination.ID, Template: h.Template.ID}
		job.Origin = &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: h.Name}}
		if h.Campaign != "" {
			job.Origin = &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: h.Campaign}}
		}
		order := cli.Order{Job: job, Columns: []string{h.Template.Columns.Phone}}
		for i, path := range *paths {
			source := &attentivev1.Source{}
			job.Groups = append(job.Groups, &attentivev1.Group{Name: fmt.Sprintf("Group%d", i), Source: source})
			order.Files = append(order.Files, cli.File{Path: path, Source: source})
		}
		return order, nil
	}
}

func (d *desk) write(name, text string) string {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// result of a command line.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\n%s--- standard error:\n%s", r.code, r.stdout, r.stderr)
}

// execute runs a command line with the desk's configuration.
func (d *desk) execute(args ...string) result {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	return d.executeIn(ctx, append(args, "--config", filepath.Join(d.dir, "relay.yaml"))...)
}

func (d *desk) executeIn(ctx context.Context, args ...string) result {
	var stdout, stderr bytes.Buffer
	code := cli.Execute(ctx, d.program, args, &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// expect fails the test unless the result has the code, and each text somewhere.
func (r result) expect(t *testing.T, code int, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Fatalf("want exit %d: %v", code, r)
	}
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("%q is missing: %v", text, r)
		}
	}
}

// nowhere is an address at which nobody listens.
const nowhere = "nats://127.0.0.1:1"

func TestUsageIsExplained(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nowhere)
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"unknown command", []string{"sned"}, []string{`unknown command "sned"`, "Did you mean this?\n\tsend", "see: stand-in --help"}},
		{"unknown command of dead-letters", []string{"dead-letters", "lst"}, []string{`unknown command "lst" for "stand-in dead-letters"`}},
		{"unknown flag", []string{"check", "--verbose"}, []string{"unknown flag: --verbose", "see: stand-in check --help"}},
		{"argument", []string{"run", "now"}, []string{`unknown command "now" for "stand-in run"`}},
		{"log level", []string{"run", "--log-level", "loud"}, []string{`--log-level "loud": use debug, info, warn or error`}},
		{"no destination", []string{"send", "--segment", "VIP"}, []string{`required flag(s) "destination" not set`, "see: stand-in send --help"}},
		{"no origin", []string{"send", "--destination", "acme"}, []string{"at least one of the flags in the group [campaign segment] is required"}},
		{"two origins", []string{"send", "--destination", "acme", "--segment", "a", "--campaign", "b"}, []string{"none of the others can be"}},
		{"unknown reason", []string{"dead-letters", "list", "--reason", "missing"}, []string{`--reason "missing"`, "source_missing"}},
		{"unknown kind", []string{"dead-letters", "list", "--kind", "jobs"}, []string{`--kind "jobs"`, "unsubscribe"}},
		{"wildcard", []string{"dead-letters", "list", "--destination", "*"}, []string{`--destination "*"`}},
		{"no job id", []string{"dead-letters", "replay", "--all", "--job", "x.y"}, []string{`--job "x.y"`}},
		{"nothing to replay", []string{"dead-letters", "replay"}, []string{"or use --all"}},
		{"ids and all", []string{"dead-letters", "replay", "1", "--all"}, []string{"not both"}},
		{"filter without all", []string{"dead-letters", "replay", "1", "--kind", "expand"}, []string{"use them with --all"}},
		{"no number", []string{"dead-letters", "replay", "one"}, []string{`"one" is no id of a dead letter`}},
		{"zero", []string{"dead-letters", "show", "0"}, []string{`"0" is no id of a dead letter`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := d.executeIn(t.Context(), append(tt.args, "--config", filepath.Join(d.dir, "relay.yaml"))...)
			r.expect(t, 2, tt.want...)
			if r.stdout != "" {
				t.Errorf("standard output = %q, want nothing", r.stdout)
			}
		})
	}
}

func TestHelpTeaches(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nowhere)
	for _, command := range []string{"run", "check", "send", "dead-letters list", "dead-letters show", "dead-letters replay"} {
		r := d.execute(append(strings.Fields(command), "--help")...)
		r.expect(t, 0, "Usage:\n  stand-in "+command, "Examples:\n  ", "--config")
		if strings.Contains(r.stdout, "PROGRAM") {
			t.Errorf("%s: %v", command, r)
		}
	}
	d.executeIn(t.Context()).expect(t, 0, "Exit codes: 0 done", "dead-letters")
	d.executeIn(t.Context(), "completion", "bash").expect(t, 0, "stand-in")
	d.executeIn(t.Context(), "__complete", "dead-letters", "list", "--reason", "source_m").expect(t, 0, "source_missing")
}

func TestConfigurationFaultsComeTogether(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nowhere)
	path := d.write("relay.yaml", "credentials: []\ndestinations: []\nspeed: 3\n")
	for _, command := range []string{
		"run", "check", "send --destination acme --segment VIP --group a.csv", "dead-letters list", "dead-letters replay --all",
	} {
		d.execute(strings.Fields(command)...).expect(t, 2, path+":1:14: ", path+":2:15: ", path+":3:1: ", "speed: unknown key")
	}
	missing := filepath.Join(d.dir, "none.yaml")
	for _, command := range []string{"run", "check", "dead-letters list"} {
		d.executeIn(t.Context(), append(strings.Fields(command), "--config", missing)...).expect(t, 2, missing, "name the file with --config")
	}
}

func TestUnreachableBroker(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nowhere)
	audience := d.write("a.csv", "mobile\n+12065550101\n")
	for _, args := range [][]string{
		{"check"},
		{"send", "--destination", "acme", "--segment", "VIP", "--group", audience},
		{"dead-letters", "list"},
		{"dead-letters", "show", "1"},
		{"dead-letters", "replay", "--all"},
	} {
		t.Run(args[len(args)-1], func(t *testing.T) {
			t.Parallel()
			d.execute(args...).expect(t, 4, nowhere, "check that the broker runs and that broker.url is its address")
		})
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nowhere)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d.executeIn(ctx, "dead-letters", "list", "--config", filepath.Join(d.dir, "relay.yaml")).expect(t, 130)
	// A worker that hangs is one whatever it was told.
	d.program.Run = func(context.Context, worker.Options) error { return worker.ErrStuck }
	d.executeIn(ctx, "run", "--config", filepath.Join(d.dir, "relay.yaml")).expect(t, 1, "did not end in time")
}

func TestRun(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nowhere)
	var got worker.Options
	var ending error
	d.program.Run = func(_ context.Context, opt worker.Options) error {
		opt.Log.Debug("detail")
		got = opt
		return ending
	}
	r := d.execute("run", "--ops-address", "127.0.0.1:0", "--log-level", "debug")
	r.expect(t, 0, `"level":"DEBUG","msg":"detail"`)
	if got.ConfigFile != filepath.Join(d.dir, "relay.yaml") || got.OpsAddress != "127.0.0.1:0" || r.stdout != "" {
		t.Errorf("options = %+v, standard output = %q", got, r.stdout)
	}
	if r := d.execute("run"); strings.Contains(r.stderr, "detail") {
		t.Errorf("debug is logged without being asked for: %v", r)
	}
	ending = errors.New("ops address taken")
	d.execute("run").expect(t, 1, "stand-in: ops address taken")
}

func TestCheck(t *testing.T) {
	t.Parallel()
	broker := queuetest.Start(t)
	d := newDesk(t, broker.URL)
	trial := cli.Trial{Outcome: cli.Passed, Subject: "credential acme-sftp", Step: "log in", Detail: "acme at sftp.attentivemobile.com:22"}
	d.program.Check = func(_ context.Context, cfg *config.Config) iter.Seq[cli.Trial] {
		if len(cfg.Destinations) != 2 {
			t.Errorf("check is given %d destinations, want 2", len(cfg.Destinations))
		}
		return func(yield func(cli.Trial) bool) { yield(trial) }
	}
	d.execute("check").expect(t, 0, "warning  broker: streams: ", "does not exist", "the worker brings that in order when it starts")
	broker.Conn(t)
	r := d.execute("check")
	want := fmt.Sprintf(`ok       configuration: %s: 1 of 2 destinations are of plugin attentive
ok       broker: connect: %s, nats-server 2.15.2
ok       broker: streams: all streams and buckets are there
ok       credential acme-sftp: log in: acme at sftp.attentivemobile.com:22
`, filepath.Join(d.dir, "relay.yaml"), broker.URL)
	if r.code != 0 || r.stdout != want || r.stderr != "" {
		t.Errorf("want exit 0 and\n%s%v", want, r)
	}

	trial.Outcome, trial.Detail = cli.Failed, "refused; correct the secret"
	d.execute("check").expect(t, 1, "failed   credential acme-sftp: log in: refused; correct the secret\n", "something is wrong, see above")
	d.execute("check", "--json").expect(t, 1,
		`{"outcome":"failed","subject":"credential acme-sftp","step":"log in","detail":"refused; correct the secret"}`+"\n")

	trial.Outcome = cli.Passed
	text, err := os.ReadFile(filepath.Join(d.dir, "relay.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	d.write("relay.yaml", strings.Replace(string(text), "credentials:", fmt.Sprintf("source_prefixes: [\"file://%s/\", file:///nowhere/]\ncredentials:", d.dir), 1))
	d.execute("check").expect(t, 1, "ok       sources: file://"+d.dir+"/: the folder can be opened",
		"failed   sources: file:///nowhere/: ", "mount or create the folder")

	d.write("relay.yaml", "credentials: []\ndestinations: []\n")
	d.execute("check", "--json").expect(t, 2, `{"outcome":"failed","subject":"configuration","step":"`+filepath.Join(d.dir, "relay.yaml")+`:1:14"`)
}
