package stage_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	attributesworker "attentive.internal/attributes-worker"
	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/stage"
	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/sandbox/api"
)

var update = flag.Bool("update", false, "write what the incident looks like into the README")

// incidentReadme has the session between the lines of this fence.
const (
	incidentReadme = "../../../pkg/cli/README.md"
	fence          = "```console\n"
)

// incident is a terminal at which somebody repairs what is broken.
type incident struct {
	*running
	t   *testing.T
	dir string // where the terminal is
	log strings.Builder
}

// says writes a comment into the session.
func (i *incident) says(text string) { fmt.Fprintf(&i.log, "# %s\n", text) }

// types runs a command line of attributes-worker, whose exit code must be the given
// one, and returns what it wrote.
func (i *incident) types(code int, line string) string {
	i.t.Helper()
	fmt.Fprintf(&i.log, "$ attributes-worker %s\n", line)
	args := strings.Fields(line)
	for n, arg := range args {
		args[n] = strings.ReplaceAll(arg, "_", " ")
		if _, err := os.Stat(filepath.Join(i.dir, arg)); err == nil || strings.HasSuffix(arg, "ndjson") {
			args[n] = filepath.Join(i.dir, arg)
		}
	}
	ctx, cancel := context.WithTimeout(i.t.Context(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	if got := attributesworker.Execute(ctx, append(args, "--config", i.ConfigFile), &out, &out); got != code {
		i.t.Fatalf("%s: exit %d, want %d\n%s", line, got, code, &out)
	}
	i.log.WriteString(out.String())
	return out.String()
}

// until waits for a condition.
func (i *incident) until(what string, condition func() bool) {
	i.t.Helper()
	for ctx := eventually(i.t); !condition(); time.Sleep(20 * time.Millisecond) {
		if ctx.Err() != nil {
			i.t.Fatalf("%s: not yet", what)
		}
	}
}

// state is that of a job in the ledger.
func (i *incident) state(id string) (s ledger.State) {
	i.t.Helper()
	kv, err := i.conn.JS.KeyValue(i.t.Context(), broker.BucketLedger)
	if err != nil {
		i.t.Fatal(err)
	}
	record, ok, err := ledger.New(kv).Find(i.t.Context(), contract.Expand, account.Attributes, id)
	if err != nil {
		i.t.Fatal(err)
	}
	if ok {
		s = record.Entry().State
	}
	return s
}

// waiting counts the attributes that wait to be sent.
func (i *incident) waiting() uint64 {
	i.t.Helper()
	q, err := backlog.Of(i.t.Context(), i.conn, contract.Attributes, account.Attributes)
	if err != nil {
		i.t.Fatal(err)
	}
	return q.Waiting
}

// has reports whether the local Attentive knows the first name of a subscriber.
func (i *incident) has(phone, name string) bool {
	person, ok := i.Sandbox.API().Subscriber(phone)
	return ok && person.Attributes["first name"] == name
}

const nightly = "0b7c1d7e-4a53-4c6e-9d0f-6f1f0d6f3a10"

// TestIncident is an evening of somebody on call, from the page to all clear: a key
// was revoked, and among the work that waited is a row that Attentive refuses. What
// is typed and seen stands in the README of the command line.
func TestIncident(t *testing.T) {
	t.Parallel()
	r := run(t, func(s *stage.Stage) {
		write(t, filepath.Join(s.Dir, account.TokenFile), "revoked-key\n")
		// An owner that is late for its lease withdraws what it has said of blocks, and is cut
		// short in what it tries. Nobody dies here: none has to be replaced soon.
		edit(t, s, "lease: 2s", "lease: 10s")
	})
	i := &incident{running: r, t: t, dir: t.TempDir()}
	write(t, filepath.Join(i.dir, "people.csv"), "mobile,customer_id,first name,favorite color,loyalty points,sms opt-in\n"+
		"+12065550111,c-1,Ann,green,1,\n+12065550113,c-2,Bob,blue,2,\n+12065550112,c-3,Eve,red,3,\n")
	i.types(0, "send --destination acme-attributes --name Nightly --file people.csv --no-follow --job "+nightly)
	i.until("the rows are profiles", func() bool { return i.state(nightly) == ledger.Sending && i.waiting() == 3 })

	i.says("The page: RelayBlocked, kind attributes, reason log_in_refused. What waits, and what is wrong?")
	i.until("the block is to be seen", func() bool {
		blocks, err := backlog.Blocks(t.Context(), i.conn)
		return err == nil && len(blocks) > 0 && blocks[0].Kind == contract.Attributes
	})
	i.types(0, "jobs")
	i.types(1, "check")
	i.says("The key was revoked in Attentive. Nobody else is to be bothered while a new one is made.")
	i.types(0, "destinations pause acme-attributes --because key_revoked,_new_one_comes --as oncall")
	// No subscriber has one of the numbers. The sandbox says so before it looks at
	// the key, and would have said it while that was the revoked one.
	if _, err := r.Sandbox.API().AddFault(api.Fault{Endpoint: api.SetAttributes, Identifier: "+12065550113", Status: 400}); err != nil {
		t.Fatal(err)
	}
	i.log.WriteString("$ cat new-key > api-key\n")
	write(t, filepath.Join(r.Dir, account.TokenFile), account.Token+"\n")
	i.types(0, "check")
	i.types(0, "destinations resume acme-attributes --as oncall")
	i.says("It goes on by itself, without a restart.")
	i.types(3, "jobs "+nightly+" --follow")

	i.says("One row was refused. Which, and why?")
	i.types(0, "dead-letters list --job "+nightly)
	i.types(0, "dead-letters show 1")
	i.says("A wrong number. The right one is known: repaired in a file, and put back.")
	i.types(0, "dead-letters export --all --job "+nightly+" --file broken.ndjson --as oncall")
	i.log.WriteString("$ sed 's/+12065550113/+12065550114/' broken.ndjson > repaired.ndjson\n")
	text, err := os.ReadFile(filepath.Join(i.dir, "broken.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(i.dir, "repaired.ndjson"), strings.ReplaceAll(string(text), "+12065550113", "+12065550114"))
	i.types(0, "dead-letters import repaired.ndjson --as oncall")
	i.types(0, "dead-letters replay --all --job "+nightly+" --as oncall")
	i.until("the repaired row arrives", func() bool { return i.has("+12065550114", "Bob") && i.waiting() == 0 })
	i.says("All clear.")
	i.types(0, "dead-letters list")
	i.types(0, "actions")
	for phone, name := range map[string]string{"+12065550111": "Ann", "+12065550112": "Eve"} {
		if !i.has(phone, name) {
			t.Errorf("%s did not arrive", name)
		}
	}
	i.compare()
}

// compare compares the session with the README.
func (i *incident) compare() {
	i.t.Helper()
	got := i.log.String()
	for _, change := range [][2]string{
		{`20\d\d-\d\d-\d\dT[0-9:]+Z`, "2026-11-23T03:00:00Z"},
		{regexp.QuoteMeta(i.dir) + "/", ""},
		{regexp.QuoteMeta(i.Dir) + "/", ""},
		{`127\.0\.0\.1:\d+`, "127.0.0.1:4222"},
		{`(worker +)\S+-[0-9a-f]{8}\n`, "${1}attributes-worker-1\n"},
		{`acme-attributes  (sending profiles|waits).*\n`, ""}, // said when it takes seconds
		{`nats-server \S+`, "nats-server 2.15"},
		{`sequence \d+`, "sequence 1764000000000000"},
	} {
		got = regexp.MustCompile(change[0]).ReplaceAllString(got, change[1])
	}
	got = strings.ReplaceAll(got, "key_revoked,_new_one_comes --as", `"key revoked, new one comes" --as`)
	readme, err := os.ReadFile(incidentReadme)
	if err != nil {
		i.t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(readme), fence)
	want, after, closed := strings.Cut(rest, "```\n")
	if !ok || !closed {
		i.t.Fatalf("%s has no session", incidentReadme)
	}
	if *update {
		write(i.t, incidentReadme, before+fence+got+"```\n"+after)
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		i.t.Errorf("the session in %s is another (-want +got, -update writes it):\n%s", incidentReadme, diff)
	}
}
