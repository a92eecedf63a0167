package prometheus_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
)

// quiet lists the panels that show nothing while all is well, and why. They are
// asked again when something is wrong.
func quiet() map[string]string {
	return map[string]string{
		"Blocks":                   "nothing is blocked",
		"Why not":                  "nothing is stopped",
		"New dead letters":         "nothing was dead-lettered in the last hour",
		"Letters by reason":        "nothing was dead-lettered",
		"PGP keys":                 "the sandbox's key never expires",
		"First PGP key expires in": "the sandbox's key never expires",
	}
}

// TestRealRun watches the all-in-one with a real Prometheus: while it carries the
// demo's jobs, while jobs fail and accounts are blocked, once that is repaired,
// and when it is gone. The operator's part is done with the workers' commands.
func TestRealRun(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	done := func(step string) { t.Logf("%5.1f s: %s", time.Since(begin).Seconds(), step) }

	r := startRelay(t)
	r.connect()
	s := startServer(t, r.dir, r.addresses)
	s.expect(2, `up{job="attentive-relay"} == 1`)
	done("both workers are scraped")
	r.served()
	inBatches(r, s)
	r.command(0, "attributes-worker", "destinations", "pause", account.Attributes, "--because", "to see it")
	s.expect(1, `relay_paused{destination="`+account.Attributes+`"} == 1`)
	r.command(0, "attributes-worker", "destinations", "resume", account.Attributes)
	work(r)
	traced(r)
	done("jobs are sent, and traced from their publisher to files and calls")

	everyQuery(t, s, false)
	everyRule(t, s)
	goldenMetrics(t, s, r.addresses)
	found := r.metrics()
	done("every query is answered while all is well")

	letters := breakDown(r, s)
	done("every query is answered while jobs fail and accounts are blocked")
	found += r.metrics() + letters
	repair(r, s)
	done("dead letters are replayed, blocks are gone")
	everyMetricMoved(t, s)

	people := append(identifiers(t, filepath.Join(r.data, "input")), "+12065550114", "+12065550115", "+12065550116")
	for what, said := range map[string]string{
		"the metrics, or what is kept of a failure": found + r.metrics(),
		"the log":                        text(t, filepath.Join(r.data, "relay.log")),
		"standard error":                 text(t, r.process.stderr),
		"the job events":                 r.events(),
		"what the workers' commands say": r.said.String(),
		"the traces":                     r.collector.Text(),
	} {
		namesNobody(t, what, said, people)
	}
	r.process.stop()
	if r.process.err != nil {
		t.Errorf("the all-in-one ended with %v", r.process.err)
	}
	s.expect(1, query(t, s, "RelayGone"))
	done("the workers are gone, and that is seen")
}

// batches is a destination that sends its attributes in batches.
const batches = "acme-batches"

// inBatches adds it to the configuration, and sends something to it.
func inBatches(r *relay, s *server) {
	r.t.Helper()
	r.configure("destinations:\n", fmt.Sprintf("destinations:\n- id: %s\n  plugin: attentive-api\n  credential: acme-api\n"+
		"  settings: {identifier: phone, default_region: US, api_mode: bulk, bulk: {confirm: true}}\n"+
		"  templates: [{id: %s, columns: {phone: mobile, client_user_id: customer_id}, attributes: {first name: {}}}]\n", batches, account.Template))
	s.expect(1, fmt.Sprintf("relay_owned{destination=%q} == 1", batches))
	file := r.write("batches.csv", "mobile,customer_id,first name\n+12065580001,w-batch-1,Uma\n+12065580002,w-batch-2,Vito\n")
	r.command(0, "attributes-worker", "send", "--destination", batches, "--name", "Batches", "--file", file)
}

// work sends what the demo did not: jobs while somebody looks, and opt-ins that
// change nothing.
func work(r *relay) {
	segment := r.write("lunch.csv", "mobile\n(206) 555-0101\n(206) 555-0102\n+12065550102\nnobody\n"+phones(30))
	r.command(0, "segment-worker", "send", "--destination", account.Segments, "--segment", "Lunch", "--group", "Lunch="+segment)
	var people strings.Builder
	people.WriteString("mobile,email,customer_id,first name,favorite color,loyalty points,sms opt-in\n")
	for i := range 300 {
		fmt.Fprintf(&people, "+1206556%04d,w%d@example.com,w-%d,Ann,green,%d,%s\n", i, i, i, i,
			map[int]string{0: "yes", 1: "no"}[i%30])
	}
	file := r.write("people.csv", people.String())
	for range 2 { // the second time nobody's wish has changed
		r.command(0, "attributes-worker", "send", "--destination", account.Attributes, "--name", "People", "--file", file)
	}
}

// phones are rows of n different people.
func phones(n int) string {
	var rows strings.Builder
	for i := range n {
		fmt.Fprintf(&rows, "+1206557%04d\n", i)
	}
	return rows.String()
}

// everyQuery asks each query of each panel, once with every destination chosen and
// once with each by its name, until it shows something.
func everyQuery(t *testing.T, s *server, trouble bool) {
	t.Helper()
	var destinations []string
	if err := s.get("label/destination/values", url.Values{"match[]": {"relay_owned"}}, &destinations); err != nil {
		t.Fatalf("the dashboard's variable: %v", err)
	}
	if want := []string{account.Attributes, batches, account.Segments}; !slices.Equal(destinations, want) {
		t.Fatalf("destinations to choose from = %v, want %v", destinations, want)
	}
	for _, p := range panels(t) {
		for _, q := range p.queries {
			for _, chosen := range []string{".*", "(" + strings.Join(destinations, "|") + ")"} {
				expr := choose(q, chosen)
				if strings.Contains(expr, "$") {
					t.Fatalf("panel %q: query %s has a variable that this test has to be told of", p.title, expr)
				}
				samples := s.shown(p.title, expr, trouble)
				if chosen == ".*" {
					t.Logf("%s | %s | %s", p.title, expr, some(samples))
				}
			}
		}
	}
}

// shown waits until a panel's query has series to show, or has none where that is
// right.
func (s *server) shown(title, expr string, trouble bool) (samples []sample) {
	s.t.Helper()
	reason := quiet()[title]
	await(s.t, fmt.Sprintf("panel %q, query %s", title, expr), func() (err error) {
		samples, err = s.query(expr)
		switch {
		case err != nil:
			return err
		case reason == "" || trouble:
			if len(samples) == 0 {
				return errors.New("it shows nothing")
			}
		case len(samples) > 0:
			return fmt.Errorf("it shows %s although %s", some(samples), reason)
		}
		return nil
	})
	return samples
}

// some shortens a list of series; those that are not zero come first.
func some(samples []sample) string {
	if len(samples) == 0 {
		return "no series"
	}
	samples = slices.Clone(samples)
	slices.SortStableFunc(samples, func(a, b sample) int { return cmp.Compare(b.value, a.value) })
	return fmt.Sprintf("%d series, the first %v", len(samples), samples[0])
}

// everyRule asks each expression, which must be silent for an alert while all is
// well, and looks at how the server's own evaluation went.
func everyRule(t *testing.T, s *server) {
	t.Helper()
	await(t, "the rules", func() error {
		rules, err := s.rules()
		if err != nil || len(rules) == 0 {
			return fmt.Errorf("rules %v: %w", rules, err)
		}
		for _, r := range rules {
			if r.Health != "ok" || r.LastError != "" {
				return fmt.Errorf("rule %s is %s: %s", r.Name, r.Health, r.LastError)
			}
			samples, err := s.query(r.Query)
			if err != nil {
				return fmt.Errorf("rule %s: %w", r.Name, err)
			}
			if len(samples) > 0 && r.Type == "alerting" {
				return fmt.Errorf("rule %s fires while all is well: %v", r.Name, samples)
			}
		}
		return nil
	})
}

// query returns the expression of an alert.
func query(t *testing.T, s *server, alert string) string {
	t.Helper()
	rules, err := s.rules()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if r.Name == alert {
			return r.Query
		}
	}
	t.Fatalf("there is no alert %s", alert)
	return ""
}

// goldenMetrics: each worker exposes every metric that is its own, and no other.
func goldenMetrics(t *testing.T, s *server, a addresses) {
	t.Helper()
	only := map[string]string{
		"relay_batches_open":              a.AttributesOps,
		"relay_batches_total":             a.AttributesOps,
		"relay_bytes_total":               a.SegmentOps,
		"relay_pgp_key_days_left":         a.SegmentOps,
		"relay_call_duration_seconds":     a.AttributesOps,
		"relay_calls_total":               a.AttributesOps,
		"relay_limiter_limit":             a.AttributesOps,
		"relay_limiter_utilization_ratio": a.AttributesOps,
		"relay_limiter_wait_seconds":      a.AttributesOps,
		"relay_profiles_skipped_total":    a.AttributesOps,
	}
	absent := []string{"relay_pgp_key_days_left", "relay_dead_letters_by_reason"} // the key never expires, no letter is stored
	for _, address := range []string{a.SegmentOps, a.AttributesOps} {
		want := make(map[string]string)
		for name, kind := range golden(t) {
			owner, limited := only[name]
			if (!limited || owner == address) && !slices.Contains(absent, name) {
				want[name] = kind
			}
		}
		got, err := s.exposed(address)
		if err != nil {
			t.Fatal(err)
		}
		for name := range got {
			if !strings.HasPrefix(name, "relay_") {
				delete(got, name)
			}
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("metrics of %s (-golden list +exposed):\n%s", address, diff)
		}
	}
}

// golden returns the type of each metric of the golden list.
func golden(t *testing.T) map[string]string {
	t.Helper()
	types := make(map[string]string)
	for line := range strings.Lines(text(t, "../../pkg/metrics/testdata/metrics.golden")) {
		if fields := strings.Split(line, " | "); !strings.HasPrefix(line, "#") && len(fields) > 2 {
			types[fields[0]] = fields[1]
		}
	}
	if len(types) == 0 {
		t.Fatal("the golden list has no metrics")
	}
	return types
}

// everyMetricMoved: each metric had a value other than zero at some moment of the
// run, and those that count by kind did for each kind.
func everyMetricMoved(t *testing.T, s *server) {
	t.Helper()
	for name, kind := range golden(t) {
		if kind == "histogram" {
			name += "_count"
		}
		s.moved(name)
	}
	for _, k := range contract.Kinds() {
		for _, stage := range []string{"read", "sent"} {
			s.moved(fmt.Sprintf("relay_rows_total{kind=%q,stage=%q}", k, stage))
		}
		s.moved(fmt.Sprintf(`relay_attempts_total{kind=%q,class="done"}`, k))
	}
	for _, series := range []string{
		`relay_rows_total{kind="segment",stage="duplicate"}`,
		`relay_rows_total{kind="segment",stage="rejected"}`,
		`relay_bytes_total{stage="plain"}`,
		`relay_bytes_total{stage="uploaded"}`,
		`relay_job_duration_seconds_count{kind="segment"}`,
		`relay_job_duration_seconds_count{kind="expand"}`,
		`relay_calls_total{endpoint="custom_attributes"}`,
		`relay_calls_total{endpoint="subscribe"}`,
		`relay_calls_total{endpoint="unsubscribe"}`,
		`relay_calls_total{endpoint="subscriptions"}`,
		`relay_calls_total{endpoint="me"}`,
		`relay_calls_total{endpoint="bulk_attributes"}`,
		`relay_calls_total{endpoint="bulk_status"}`,
		`relay_batches_total{outcome="accepted"}`,
		`relay_batches_total{outcome="completed"}`,
		`relay_limiter_utilization_ratio{endpoint="custom_attributes"}`,
		`relay_profiles_skipped_total{kind="subscribe",cause="unchanged"}`,
		`relay_profiles_skipped_total{kind="unsubscribe",cause="unchanged"}`,
	} {
		s.moved(series)
	}
}

// moved fails the test when none of the series was ever other than zero.
func (s *server) moved(series string) {
	s.t.Helper()
	samples, err := s.query(fmt.Sprintf("max_over_time(%s[15m]) > 0", series))
	if err != nil {
		s.t.Error(err)
	} else if len(samples) == 0 {
		s.t.Errorf("%s: was zero for all of the run", series)
	}
}

// breakDown makes jobs fail and blocks both accounts, and waits until all of that
// is to be seen. It returns what is kept of the failures.
func breakDown(r *relay, s *server) (letters string) {
	expiringKey(r, s)
	// A source that cannot be read is the job's fault, which waits for room ...
	roomy := r.ceiling(1)
	broken := r.write("broken.csv", "mobile\n+12065550111\n\"+12065550112\n")
	r.publish(contract.JobSubject(contract.Segment, account.Segments), segmentJob("Broken", broken))
	s.expect(1, query(r.t, s, "RelayDeadLettersFull"))
	r.ceiling(roomy)
	await(r.t, "the dead letter of a segment", func() error {
		if list := r.command(0, "segment-worker", "dead-letters", "list"); !strings.Contains(list, "source_unreadable") {
			return errors.New(list)
		}
		return nil
	})
	// ... and so is what the API refuses.
	r.sandbox("POST", "faults", `{"endpoint": "POST /v1/attributes/custom", "status": 400, "times": 1}`)
	refused := r.write("refused.csv", "mobile,customer_id,first name,favorite color,loyalty points,sms opt-in\n+12065550113,w-refused,Bob,blue,1,\n")
	r.command(3, "attributes-worker", "send", "--destination", account.Attributes, "--name", "Refused", "--file", refused)
	r.command(0, "attributes-worker", "dead-letters", "list", "--reason", "rejected")
	letters = r.deadLetters()
	// Nobody has a destination of this name ...
	r.publish(contract.JobSubject(contract.Segment, elsewhere), segmentJob("Elsewhere", broken))
	s.expect(1, `relay_unclaimed_messages{kind="segment"} == 1`)
	// A subscribe without an answer is looked up ...
	r.sandbox("POST", "faults", `{"endpoint": "POST /v1/subscriptions", "cut": true, "executed": true, "times": 1}`)
	r.profile(contract.Subscribe, "+12065550115", `"subscribe": {}`)
	s.expect(1, `relay_calls_total{endpoint="subscribe",code="network"} > 0`)
	// ... and a password and a key that were changed hold everything up.
	r.sandbox("PUT", "sftp", `{"refuse_login": true}`)
	r.sandbox("PUT", "keys/"+account.KeyID, `{"revoked": true}`)
	r.publish(contract.JobSubject(contract.Segment, account.Segments), segmentJob("Late", r.write("late.csv", "mobile\n"+phones(5))))
	for kind, operation := range map[contract.Kind]string{
		contract.Attributes:  `"attributes": {"values": {"first name": "Zoe"}}`,
		contract.Subscribe:   `"subscribe": {}`,
		contract.Unsubscribe: `"unsubscribe": {}`,
	} {
		r.profile(kind, "+12065550114", operation)
	}
	s.expect(1, `relay_blocked{kind="segment",scope="account",reason="log_in_refused"} == 1`)
	s.expect(6, `relay_blocked{kind!="segment",scope="account",reason="log_in_refused"} == 1`) // two destinations of one account
	s.expect(4, `relay_queue_oldest_age_seconds > 1`)
	s.expect(2, `relay_dead_letters == 1`)
	s.expect(2, `relay_dead_letters_by_reason{reason=~"rejected|source_unreadable"} == 1`)
	everyQuery(r.t, s, true)
	s.alerted(
		"RelayBlocked attributes acme-attributes", "RelayBlocked attributes acme-batches", "RelayBlocked segment acme-segments",
		"RelayBlocked subscribe acme-attributes", "RelayBlocked subscribe acme-batches",
		"RelayBlocked unsubscribe acme-attributes", "RelayBlocked unsubscribe acme-batches",
		"RelayDeadLetters attributes acme-attributes", "RelayDeadLetters segment acme-segments",
		"RelayKeyExpires acme-segments", "RelayUnclaimed segment",
	)
	return letters
}

// elsewhere is no destination.
const elsewhere = "elsewhere"

// ceiling changes how many bytes of dead letters there may be, and returns how
// many there were allowed before.
func (r *relay) ceiling(bytes int64) (before int64) {
	r.t.Helper()
	stream, err := r.conn.JS.Stream(r.t.Context(), broker.StreamDead)
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	before, cfg.MaxBytes = cfg.MaxBytes, bytes
	if _, err := r.conn.JS.UpdateStream(r.t.Context(), cfg); err != nil {
		r.t.Fatal(err)
	}
	return before
}

// profile publishes an update of one subscriber.
func (r *relay) profile(kind contract.Kind, phone, operation string) {
	r.publish(contract.ProfileSubject(account.Attributes, kind, contract.LiveJob),
		fmt.Sprintf(`{"id": %q, "identifiers": {"phone": %q}, %s}`, uuid.NewString(), phone, operation))
}

// segmentJob is a job of one group that reads a file.
func segmentJob(segment, path string) string {
	return fmt.Sprintf(`{"id": %q, "destination": %q, "template": %q, "orchestration": {"segment_name": %q},
		"groups": [{"name": "everybody", "source": {"url": %q, "format": "FORMAT_CSV"}}]}`,
		uuid.NewString(), account.Segments, account.Template, segment, (&url.URL{Scheme: "file", Path: path}).String())
}

// expiringKey adds a key to the configuration that is good for ten more days.
func expiringKey(r *relay, s *server) {
	r.t.Helper()
	entity, err := openpgp.NewEntity("Receiver", "", "receiver@example.com", &packet.Config{KeyLifetimeSecs: 10 * 24 * 3600})
	if err != nil {
		r.t.Fatal(err)
	}
	key, err := os.Create(filepath.Join(r.data, "expiring.pgp"))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := errors.Join(entity.Serialize(key), key.Close()); err != nil {
		r.t.Fatal(err)
	}
	r.configure("pgp: {keys: [", "pgp: {keys: [expiring.pgp, ")
	s.expect(1, `relay_pgp_key_days_left > 9 < 10`)
}

// repair takes the causes away, and replays what had failed, as an operator does.
func repair(r *relay, s *server) {
	r.sandbox("PUT", "sftp", `{}`)
	r.sandbox("PUT", "keys/"+account.KeyID, `{"revoked": false}`)
	r.write("broken.csv", "mobile\n+12065550111\n+12065550112\n")
	var letter struct{ ID uint64 }
	list := r.command(0, "segment-worker", "dead-letters", "list", "--json", "--reason", "source_unreadable")
	if err := json.Unmarshal([]byte(list), &letter); err != nil {
		r.t.Fatalf("%v in %s", err, list)
	}
	r.command(0, "segment-worker", "dead-letters", "show", fmt.Sprint(letter.ID))
	r.command(0, "segment-worker", "dead-letters", "replay", fmt.Sprint(letter.ID))
	r.command(0, "attributes-worker", "dead-letters", "replay", "--all", "--reason", "rejected")
	jobs, err := r.conn.JS.Stream(r.t.Context(), broker.StreamJobs)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := jobs.Purge(r.t.Context(), jetstream.WithPurgeSubject(contract.JobSubject(contract.Segment, elsewhere))); err != nil {
		r.t.Fatal(err)
	}
	s.expect(0, `relay_unclaimed_messages > 0`)
	s.expect(0, `relay_blocked > 0`)
	s.expect(0, `relay_queue_depth > 0`)
	s.expect(0, `relay_dead_letters > 0`)
	s.expect(0, `relay_dead_letters_by_reason > 0`)
	s.alerted("RelayKeyExpires acme-segments") // the key has ten days, still
	await(r.t, "the segments of the repaired jobs", func() error {
		var segments []struct {
			Name  string
			Count int
		}
		if err := json.Unmarshal(r.sandbox("GET", "segments", ""), &segments); err != nil {
			return err
		}
		counts := make(map[string]int)
		for _, found := range segments {
			counts[found.Name] = found.Count
		}
		if counts["Broken"] != 2 || counts["Late"] != 5 {
			return fmt.Errorf("segments = %v, want 2 people in Broken and 5 in Late", counts)
		}
		return nil
	})
}
