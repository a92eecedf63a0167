package metrics

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

var update = flag.Bool("update", false, "write testdata/metrics.golden")

// destinations are one of each plug-in.
func destinations() []Destination {
	return []Destination{
		{ID: "acme-segments", Credential: "acme-sftp", Kinds: []contract.Kind{contract.Segment}},
		{ID: "acme-attributes", Credential: "acme-api", Kinds: []contract.Kind{
			contract.Expand, contract.Attributes, contract.Subscribe, contract.Unsubscribe,
		}},
	}
}

// families gathers what a scrape would show: per metric, its series as
// "name=value name=value".
func families(t *testing.T, reg prometheus.Gatherer) map[string][]string {
	t.Helper()
	gathered, err := reg.Gather()
	if err != nil {
		t.Fatalf("gather: %v", err)
	}
	list := make(map[string][]string)
	for _, family := range gathered {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			list[family.GetName()] = append(list[family.GetName()], strings.Join(labels, " "))
		}
	}
	return list
}

func TestGoldenList(t *testing.T) {
	m := New(prometheus.NewRegistry(), nil)
	var lines, rows []string
	for _, d := range m.definitions {
		lines = append(lines, fmt.Sprintf("%s | %s | %s | %s | %s\n",
			d.name, d.kind, cmp.Or(strings.Join(d.labels, " "), "-"), d.unit, d.help))
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s | %s | %s |\n", d.name, d.kind, strings.Join(d.labels, ", "), d.unit, d.help))
	}
	slices.Sort(lines)
	slices.Sort(rows)
	compare(t, "testdata/metrics.golden", "# name | type | labels | unit | help\n"+strings.Join(lines, ""))

	const page = "README.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	// Between the heads of the two tables and the blank lines after them.
	got := table(t, string(text), "| metric | type | labels | unit | meaning |\n| --- | --- | --- | --- | --- |\n", rows)
	got = table(t, got, "| label | values |\n| --- | --- |\n", closedSets())
	compare(t, page, got)
}

// compare fails the test when the file does not hold got; with -update it does.
func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(string(want), got); diff != "" {
		t.Errorf("metrics differ from %s; accept with -update (-want +got):\n%s", file, diff)
	}
}

// table returns text with the rows below head.
func table(t *testing.T, text, head string, rows []string) string {
	t.Helper()
	before, after, ok := strings.Cut(text, head)
	if !ok {
		t.Fatalf("no table %q", head)
	}
	_, after, _ = strings.Cut(after, "\n\n")
	return before + head + strings.Join(rows, "") + "\n" + after
}

// closedSets are the values of the labels that do not come from the configuration.
func closedSets() (rows []string) {
	for _, label := range []struct {
		name   string
		values []string
	}{
		{"kind", texts(contract.Kinds())},
		{"`relay_jobs_total` outcome", texts(outcomes())},
		{"`relay_attempts_total` class", classes()},
		{"`relay_rows_total` stage", texts(stages())},
		{"`relay_bytes_total` stage", texts(byteStages())},
		{"endpoint", texts(endpoints())},
		{"code", texts(codes())},
		{"cause", texts(causes())},
		{"scope", texts(fault.Scopes())},
		{"`relay_blocked` reason", texts(fault.BlockReasons())},
		{"reason of dead letters", texts(fault.DeadLetterReasons())},
	} {
		rows = append(rows, fmt.Sprintf("| %s | %s |\n", label.name, strings.Join(label.values, ", ")))
	}
	return rows
}

// TestNamesFollowTheirUnits keeps the suffix rule of Prometheus.
func TestNamesFollowTheirUnits(t *testing.T) {
	t.Parallel()
	for _, d := range New(prometheus.NewRegistry(), nil).definitions {
		if !strings.HasPrefix(d.name, "relay_") {
			t.Errorf("%s does not begin with relay_", d.name)
		}
		if got, want := strings.HasSuffix(d.name, "_total"), d.kind == "counter"; got != want {
			t.Errorf("%s is a %s: the suffix _total is for counters, and for all of them", d.name, d.kind)
		}
		if d.kind == "histogram" && !strings.HasSuffix(d.name, "_"+d.unit) {
			t.Errorf("%s counts %s and does not say so", d.name, d.unit)
		}
	}
}

// TestScrapeMatchesTheList scrapes a process in which everything was set once.
func TestScrapeMatchesTheList(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := New(reg, destinations())
	m.PGPKeyDaysLeft("acme-segments").Set(30)
	m.queues.set(Reading{Queues: []Queue{{Kind: contract.Segment, Destination: "acme-segments"}}, Streams: []Stream{{Name: "ATTENTIVE_JOBS"}}})
	m.letters.set([]Letters{{Kind: contract.Segment, Destination: "acme-segments", Reason: fault.Rejected, Count: 1}})
	scraped := families(t, reg)
	want := make(map[string][]string)
	for _, d := range m.definitions {
		want[d.name] = slices.Sorted(slices.Values(d.labels))
	}
	got := make(map[string][]string)
	for name, series := range scraped {
		if !strings.HasPrefix(name, "relay_") {
			continue
		}
		got[name] = nil
		for pair := range strings.FieldsSeq(series[0]) {
			label, _, _ := strings.Cut(pair, "=")
			got[name] = append(got[name], label)
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("labels of a scrape (-listed +scraped):\n%s", diff)
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if len(scraped[name]) == 0 {
			t.Errorf("%s is not scraped", name)
		}
	}
}

func TestZeroIsVisibleFromTheStart(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	New(reg, destinations())
	got := families(t, reg)
	tests := []struct {
		name  string
		count int
		has   string
	}{
		{"relay_jobs_total", 2 * 3, "destination=acme-segments kind=segment outcome=dead_lettered"},
		{"relay_attempts_total", 5 * 5, "class=done destination=acme-attributes kind=expand"},
		{"relay_rows_total", 5 * 4, "destination=acme-attributes kind=subscribe stage=sent"},
		{"relay_bytes_total", 2, "destination=acme-segments stage=uploaded"},
		{"relay_calls_total", 7 * 16, "code=429 destination=acme-attributes endpoint=subscribe"},
		{"relay_dead_letters_total", 5 * len(fault.DeadLetterReasons()), "destination=acme-attributes kind=subscribe reason=stale_consent"},
		{"relay_blocked", 5 * 3 * len(fault.BlockReasons()), "destination=acme-segments kind=segment reason=host_key_unknown scope=account"},
		{"relay_destination_info", 2, "credential=acme-api destination=acme-attributes"},
		{"relay_owned", 2, "destination=acme-segments"},
		{"relay_paused", 2, "destination=acme-segments"},
		{"relay_batches_total", 7, "destination=acme-attributes outcome=split"},
		{"relay_batches_open", 1, "destination=acme-attributes"},
		{"relay_profiles_skipped_total", 2 + 2*3, "cause=unchanged destination=acme-attributes kind=unsubscribe"},
		{"relay_job_duration_seconds", 2, "destination=acme-attributes kind=expand"},
		{"relay_call_duration_seconds", 7, "destination=acme-attributes endpoint=me"},
		{"relay_limiter_wait_seconds", 7, "credential=acme-api endpoint=custom_attributes"},
		{"relay_limiter_limit", 7, "credential=acme-api endpoint=unsubscribe"},
		{"relay_limiter_utilization_ratio", 7, "credential=acme-api endpoint=bulk_status"},
		{"relay_ready", 1, ""},
		{"relay_build_info", 1, ""},
		{"relay_pgp_key_days_left", 0, ""}, // a zero would say that the key expires today
		{"relay_queue_depth", 0, ""},       // unknown until the broker was asked
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			series := got[tt.name]
			if len(series) != tt.count {
				t.Errorf("%s has %d series at start, want %d", tt.name, len(series), tt.count)
			}
			if tt.has != "" && !slices.Contains(series, tt.has) {
				t.Errorf("%s lacks {%s}", tt.name, tt.has)
			}
		})
	}
}

// TestTwoWorkersInOneProcess is the all-in-one: what one counts, the other does not.
func TestTwoWorkersInOneProcess(t *testing.T) {
	t.Parallel()
	first, second := prometheus.NewRegistry(), prometheus.NewRegistry()
	a, b := New(first, destinations()[:1]), New(second, destinations()[1:])
	a.Jobs(contract.Segment, "acme-segments", Succeeded).Inc()
	if got := testutil.ToFloat64(a.Jobs(contract.Segment, "acme-segments", Succeeded)); got != 1 {
		t.Errorf("the first worker counts %v jobs, want 1", got)
	}
	if got := testutil.ToFloat64(b.Jobs(contract.Segment, "acme-segments", Succeeded)); got != 0 {
		t.Errorf("the second worker counts %v jobs, want 0", got)
	}
	families(t, first)
	families(t, second)
}

// TestLabelsStayClosed counts what no configuration names under one value.
func TestLabelsStayClosed(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := New(reg, destinations())
	for _, id := range []string{"gone", "", "a@example.com"} {
		m.DeadLetters(contract.Segment, id, fault.UnknownDestination).Inc()
	}
	for name, series := range families(t, reg) {
		for _, labels := range series {
			if strings.Contains(labels, "gone") || strings.Contains(labels, "@") || strings.Contains(labels, "destination= ") {
				t.Errorf("%s{%s}: a destination outside the configuration is a label", name, labels)
			}
		}
	}
	if got := testutil.ToFloat64(m.DeadLetters(contract.Segment, "other-gone", fault.UnknownDestination)); got != 3 {
		t.Errorf("dead letters of unknown destinations = %v, want 3", got)
	}
}

func TestEachMethodMovesItsOwnMetric(t *testing.T) {
	t.Parallel()
	const segments, attributes = "acme-segments", "acme-attributes"
	m := New(prometheus.NewRegistry(), destinations())
	tests := []struct {
		name   string
		metric interface {
			prometheus.Collector
			Add(float64)
		}
	}{
		{"relay_jobs_total", m.Jobs(contract.Expand, attributes, Cancelled)},
		{"relay_attempts_total", m.Attempts(contract.Expand, attributes, nil)},
		{"relay_rows_total", m.Rows(contract.Segment, segments, Duplicate)},
		{"relay_bytes_total", m.Bytes(segments, Uploaded)},
		{"relay_calls_total", m.Calls(attributes, Subscribe, Timeout)},
		{"relay_dead_letters_total", m.DeadLetters(contract.Subscribe, attributes, fault.StaleConsent)},
		{"relay_profiles_skipped_total", m.ProfilesSkipped(contract.Subscribe, attributes, Unchanged)},
		{"relay_limiter_limit", m.LimiterLimit("acme-api", Subscribe)},
		{"relay_limiter_utilization_ratio", m.LimiterUtilization("acme-api", Subscribe)},
		{"relay_blocked", m.Blocked(contract.Subscribe, attributes, Block{fault.ScopeEndpoint, fault.ScopeMissing})},
		{"relay_owned", m.Owned(segments)},
		{"relay_paused", m.Paused(segments)},
		{"relay_pgp_key_days_left", m.PGPKeyDaysLeft(segments)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.metric.Add(3)
			if got := testutil.ToFloat64(tt.metric); got != 3 {
				t.Errorf("got %v, want 3", got)
			}
			descs := make(chan *prometheus.Desc, 1)
			tt.metric.Describe(descs)
			if desc := (<-descs).String(); !strings.Contains(desc, `"`+tt.name+`"`) {
				t.Errorf("got %s, want %s", desc, tt.name)
			}
		})
	}
}

func TestObservers(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := New(reg, destinations())
	m.JobDuration(contract.Segment, "acme-segments").Observe(2)
	m.CallDuration("acme-attributes", Me).Observe(0.2)
	m.LimiterWait("acme-api", Subscribe).Observe(0.02)
	gathered, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, family := range gathered {
		for _, series := range family.GetMetric() {
			if h := series.GetHistogram(); h != nil && strings.HasPrefix(family.GetName(), "relay_") {
				got[family.GetName()] += h.GetSampleSum()
			}
		}
	}
	want := map[string]float64{
		"relay_job_duration_seconds": 2, "relay_call_duration_seconds": 0.2, "relay_limiter_wait_seconds": 0.02,
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("sums (-want +got):\n%s", diff)
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := New(reg, nil)
	check := func(step string, want float64) {
		t.Helper()
		if got := m.readiness(); got != want {
			t.Errorf("%s: relay_ready = %v, want %v", step, got, want)
		}
	}
	check("before the first call", 0)
	err := errors.New("broker: not connected")
	m.SetReady(func() error { return err })
	check("while not ready", 0)
	err = nil
	check("when ready", 1)
}

func TestNewTwiceOnOneRegistry(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	New(reg, nil)
	defer func() {
		if recover() == nil {
			t.Error("a second New on one registry went unnoticed: two workers would count into each other")
		}
	}()
	New(reg, nil)
}
