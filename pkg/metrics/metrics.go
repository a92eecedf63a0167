// Package metrics registers every metric of both workers, prefix relay_.
//
// The labels are closed sets, and each combination that can occur is created by
// New, so that zero is visible from the first scrape: a rate over a counter that
// appears with its first failure misses that failure. No label ever holds a job
// id, a file name, a segment, a subscriber or the text of an error. A destination
// that the configuration does not name is counted under the value "_other".
//
// README.md and testdata/metrics.golden list all metrics with type, labels, unit
// and help; dashboards and alert rules may use nothing else.
package metrics

import (
	"runtime"
	"runtime/debug"
	"sync/atomic"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// other is the value of the label destination for one that New was not told of.
// No id can be equal to it.
const other = "_other"

// Destination names the values that the labels of one destination can have.
type Destination struct {
	ID string
	// Credential is the id of the destination's credential; it labels the limiters.
	Credential string
	// Kinds are the queues that this process works for the destination.
	Kinds []contract.Kind
}

// Metrics holds every metric of one process. Its methods may be called
// concurrently; what they return is safe for concurrent use and may be kept.
type Metrics struct {
	jobs            *prometheus.CounterVec
	attempts        *prometheus.CounterVec
	rows            *prometheus.CounterVec
	bytes           *prometheus.CounterVec
	calls           *prometheus.CounterVec
	deadLetters     *prometheus.CounterVec
	profilesSkipped *prometheus.CounterVec

	jobDuration  *prometheus.HistogramVec
	callDuration *prometheus.HistogramVec
	limiterWait  *prometheus.HistogramVec

	limiterLimit       *prometheus.GaugeVec
	limiterUtilization *prometheus.GaugeVec
	blocked            *prometheus.GaugeVec
	owned              *prometheus.GaugeVec
	destinationInfo    *prometheus.GaugeVec
	paused             *prometheus.GaugeVec
	pgpKeyDaysLeft     *prometheus.GaugeVec
	unclaimed          *prometheus.GaugeVec

	known map[string]bool
	ready atomic.Pointer[func() error]

	batches     batches
	queues      *queues
	letters     *letters
	definitions []definition
}

// New registers all metrics with reg, and those of Go's runtime and of the
// process. It panics when reg holds metrics of the same names already: two
// workers in one process have a registry each.
func New(reg prometheus.Registerer, destinations []Destination) *Metrics {
	r := &registry{reg: reg}
	m := &Metrics{known: make(map[string]bool)}
	m.register(r)
	m.registerProcess(r)
	m.batches = newBatches(r)
	m.queues = newQueues(r)
	m.letters = newLetters(r, m.label)
	m.definitions = r.definitions
	for _, d := range destinations {
		m.known[d.ID] = true
		m.create(d)
	}
	return m
}

// Jobs counts the jobs of a destination by how they ended. The kind is
// contract.Segment or contract.Expand.
func (m *Metrics) Jobs(kind contract.Kind, destination string, outcome Outcome) prometheus.Counter {
	return m.jobs.WithLabelValues(string(kind), m.label(destination), string(outcome))
}

// Attempts counts attempts at a job or a message by what err, which ended the
// attempt, means: its fault.Class, or "done" when err is nil.
func (m *Metrics) Attempts(kind contract.Kind, destination string, err error) prometheus.Counter {
	return m.attempts.WithLabelValues(string(kind), m.label(destination), classOf(err))
}

// Rows counts the rows of audiences, and the profiles, that reached stage.
func (m *Metrics) Rows(kind contract.Kind, destination string, stage Stage) prometheus.Counter {
	return m.rows.WithLabelValues(string(kind), m.label(destination), string(stage))
}

// Bytes counts the bytes of audiences at stage.
func (m *Metrics) Bytes(destination string, stage ByteStage) prometheus.Counter {
	return m.bytes.WithLabelValues(m.label(destination), string(stage))
}

// Calls counts the calls of an endpoint by their answer; see CodeOf.
func (m *Metrics) Calls(destination string, endpoint Endpoint, code Code) prometheus.Counter {
	return m.calls.WithLabelValues(m.label(destination), string(endpoint), string(code))
}

// CallDuration observes how long calls took, in seconds, whatever their answer.
func (m *Metrics) CallDuration(destination string, endpoint Endpoint) prometheus.Observer {
	return m.callDuration.WithLabelValues(m.label(destination), string(endpoint))
}

// JobDuration observes the time from the first sight of a job to its outcome, in
// seconds.
func (m *Metrics) JobDuration(kind contract.Kind, destination string) prometheus.Observer {
	return m.jobDuration.WithLabelValues(string(kind), m.label(destination))
}

// LimiterWait observes how long a call that was ready waited for its turn, in
// seconds.
func (m *Metrics) LimiterWait(credential string, endpoint Endpoint) prometheus.Observer {
	return m.limiterWait.WithLabelValues(credential, string(endpoint))
}

// LimiterLimit is the limit in force, in calls per second.
func (m *Metrics) LimiterLimit(credential string, endpoint Endpoint) prometheus.Gauge {
	return m.limiterLimit.WithLabelValues(credential, string(endpoint))
}

// LimiterUtilization is the share of the limit used in the last second, 0 to 1.
func (m *Metrics) LimiterUtilization(credential string, endpoint Endpoint) prometheus.Gauge {
	return m.limiterUtilization.WithLabelValues(credential, string(endpoint))
}

// DeadLetters counts dead letters as they are stored, by reason.
func (m *Metrics) DeadLetters(kind contract.Kind, destination string, reason fault.Reason) prometheus.Counter {
	return m.deadLetters.WithLabelValues(string(kind), m.label(destination), string(reason))
}

// Block names what stops the work of one kind.
type Block struct {
	Scope  fault.Scope
	Reason fault.Reason
}

// Blocked is 1 while the work of kind waits for the cause to go away, else 0. A
// block of a whole account or destination is set for each kind it stops, so that
// an alert about a queue can ask whether that queue is blocked.
func (m *Metrics) Blocked(kind contract.Kind, destination string, b Block) prometheus.Gauge {
	return m.blocked.WithLabelValues(string(kind), m.label(destination), string(b.Scope), string(b.Reason))
}

// Owned is 1 while this process owns the destination, else 0.
func (m *Metrics) Owned(destination string) prometheus.Gauge {
	return m.owned.WithLabelValues(m.label(destination))
}

// Paused is 1 while an operator has paused the destination, in every process that
// is configured to work it, else 0.
func (m *Metrics) Paused(destination string) prometheus.Gauge {
	return m.paused.WithLabelValues(m.label(destination))
}

// Unclaimed is how many messages of kind wait for destinations that no
// configuration names. One process of a program looks; the others say 0.
func (m *Metrics) Unclaimed(kind contract.Kind) prometheus.Gauge {
	return m.unclaimed.WithLabelValues(string(kind))
}

// ProfilesSkipped counts the profiles acknowledged without a call of their own.
func (m *Metrics) ProfilesSkipped(kind contract.Kind, destination string, cause Cause) prometheus.Counter {
	return m.profilesSkipped.WithLabelValues(string(kind), m.label(destination), string(cause))
}

// PGPKeyDaysLeft is the time until the first of the destination's PGP keys
// expires, in days. It has no value before the first call, and none for keys
// that do not expire.
func (m *Metrics) PGPKeyDaysLeft(destination string) prometheus.Gauge {
	return m.pgpKeyDaysLeft.WithLabelValues(m.label(destination))
}

// SetReady makes relay_ready 1 while ready returns nil; it is 0 before the first
// call. ready is called at every scrape and must be cheap.
func (m *Metrics) SetReady(ready func() error) { m.ready.Store(&ready) }

// label keeps the label destination a closed set.
func (m *Metrics) label(destination string) string {
	if m.known[destination] {
		return destination
	}
	return other
}

func (m *Metrics) register(r *registry) {
	m.jobs = r.counter("relay_jobs_total", "jobs",
		"Jobs that ended, by outcome.", "kind", "destination", "outcome")
	m.attempts = r.counter("relay_attempts_total", "attempts",
		"Attempts at a job or message, by the class of their failure, or done.", "kind", "destination", "class")
	m.rows = r.counter("relay_rows_total", "rows",
		"Rows of audiences, or profiles, that reached a stage.", "kind", "destination", "stage")
	m.bytes = r.counter("relay_bytes_total", "bytes",
		"Bytes of audiences before compression and encryption (plain), and as uploaded.", "destination", "stage")
	m.calls = r.counter("relay_calls_total", "calls",
		"Calls of the API by status, family of statuses, timeout or network.", "destination", "endpoint", "code")
	m.deadLetters = r.counter("relay_dead_letters_total", "messages",
		"Dead letters stored by this process, by reason.", "kind", "destination", "reason")
	m.profilesSkipped = r.counter("relay_profiles_skipped_total", "profiles",
		"Profiles acknowledged without a call of their own, by cause.", "kind", "destination", "cause")

	m.jobDuration = r.seconds("relay_job_duration_seconds",
		"Time from the first sight of a job to its outcome.",
		[]float64{0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400}, "kind", "destination")
	m.callDuration = r.seconds("relay_call_duration_seconds",
		"Time that calls of the API took, whatever their answer.",
		[]float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5}, "destination", "endpoint")
	m.limiterWait = r.seconds("relay_limiter_wait_seconds",
		"Time that a call which was ready waited for its turn under the rate limit.",
		[]float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30}, "credential", "endpoint")

	m.limiterLimit = r.gauge("relay_limiter_limit", "calls per second",
		"Rate limit in force.", "credential", "endpoint")
	m.limiterUtilization = r.gauge("relay_limiter_utilization_ratio", "ratio",
		"Share of the rate limit used in the last second.", "credential", "endpoint")
	m.blocked = r.gauge("relay_blocked", "boolean",
		"1 while the work of a kind waits for the cause of a block to go away.", "kind", "destination", "scope", "reason")
	m.owned = r.gauge("relay_owned", "boolean",
		"1 while this process owns the destination.", "destination")
	m.destinationInfo = r.gauge("relay_destination_info", "boolean",
		"1 for each destination of the configuration, with the credential by which the limiters are labelled.", "destination", "credential")
	m.paused = r.gauge("relay_paused", "boolean",
		"1 while an operator has paused the destination: its messages wait.", "destination")
	m.unclaimed = r.gauge("relay_unclaimed_messages", "messages",
		"Messages for destinations that no configuration names; one process of a program looks.", "kind")
	m.pgpKeyDaysLeft = r.gauge("relay_pgp_key_days_left", "days",
		"Days until the first PGP key of the destination expires.", "destination")
}

// registerProcess registers what concerns the process and no destination.
func (m *Metrics) registerProcess(r *registry) {
	version, revision := build()
	r.gauge("relay_build_info", "boolean",
		"1, with the build in the labels.", "version", "revision", "go").
		WithLabelValues(version, revision, runtime.Version()).Set(1)
	r.define(definition{"relay_ready", "gauge", "boolean", "1 while /readyz answers 200.", nil})
	r.reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "relay_ready", Help: "1 while /readyz answers 200."}, m.readiness),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
}

func (m *Metrics) readiness() float64 {
	if ready := m.ready.Load(); ready != nil && (*ready)() == nil {
		return 1
	}
	return 0
}

// create makes every combination of labels that d can have.
func (m *Metrics) create(d Destination) {
	ids, kinds := []string{d.ID}, texts(d.Kinds)
	var jobs []string // the kinds that are jobs; the others are profiles
	calls := false
	for _, k := range d.Kinds {
		if k.Job() {
			jobs = append(jobs, string(k))
		}
		calls = calls || k.Profile()
	}
	product(func(v ...string) { m.jobs.WithLabelValues(v...) }, jobs, ids, texts(outcomes()))
	product(func(v ...string) { m.jobDuration.WithLabelValues(v...) }, jobs, ids)
	product(func(v ...string) { m.unclaimed.WithLabelValues(v...) }, kinds)
	product(func(v ...string) { m.attempts.WithLabelValues(v...) }, kinds, ids, classes())
	product(func(v ...string) { m.rows.WithLabelValues(v...) }, kinds, ids, texts(stages()))
	product(func(v ...string) { m.deadLetters.WithLabelValues(v...) }, kinds, ids, texts(fault.DeadLetterReasons()))
	product(func(v ...string) { m.blocked.WithLabelValues(v...) },
		kinds, ids, texts(fault.Scopes()), texts(fault.BlockReasons()))
	m.owned.WithLabelValues(d.ID)
	m.destinationInfo.WithLabelValues(d.ID, d.Credential).Set(1)
	m.paused.WithLabelValues(d.ID)
	if !calls {
		product(func(v ...string) { m.bytes.WithLabelValues(v...) }, ids, texts(byteStages()))
		return
	}
	m.batches.create(d.ID)
	product(func(v ...string) { m.profilesSkipped.WithLabelValues(v...) },
		texts([]contract.Kind{contract.Attributes}), ids, texts([]Cause{Unchanged, JobCancelled}))
	product(func(v ...string) { m.profilesSkipped.WithLabelValues(v...) },
		texts([]contract.Kind{contract.Subscribe, contract.Unsubscribe}), ids, texts(causes()))
	product(func(v ...string) { m.calls.WithLabelValues(v...) }, ids, texts(endpoints()), texts(codes()))
	product(func(v ...string) { m.callDuration.WithLabelValues(v...) }, ids, texts(endpoints()))
	credentials := []string{d.Credential}
	product(func(v ...string) { m.limiterWait.WithLabelValues(v...) }, credentials, texts(endpoints()))
	product(func(v ...string) { m.limiterLimit.WithLabelValues(v...) }, credentials, texts(endpoints()))
	product(func(v ...string) { m.limiterUtilization.WithLabelValues(v...) }, credentials, texts(endpoints()))
}

// build returns the version and the commit that the binary was built from.
func build() (version, revision string) {
	version, revision = "unknown", "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version, revision
	}
	if info.Main.Version != "" {
		version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value
		}
	}
	return version, revision
}
