package ops

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// lateAfter is the age of the oldest message at which the page calls a queue late.
const lateAfter = 15 * time.Minute

// State is how a queue is, worst last.
type state string

const (
	idle    state = "idle"
	flowing state = "flowing"
	paused  state = "paused"
	late    state = "late"
	blocked state = "blocked"
)

// queue is one row of the page.
type queue struct {
	Destination, Kind string
	State             state
	// Why says what a queue waits for, in the words of the metrics.
	Why     string
	Waiting float64
	Oldest  time.Duration
	Known   bool // the broker has told how much waits
	Owned   bool // by this process
	Sent    float64
	Failed  float64 // attempts, a minute
	Line    string  // points of the sparkline
	Dead    float64
}

// endpoint is how one call of the API does.
type endpoint struct {
	Credential, Name       string
	Limit, Used            float64
	Calls, Throttled, Lost float64 // a minute; lost are 5xx, time-outs and cut ones
}

// bar is a share of something with a name.
type bar struct {
	Name  string
	Share float64
	Count float64
}

// view is what the page shows.
type view struct {
	Program, Build   string
	At               time.Time
	Verdict          state
	Headline, Detail string
	NotReady         string

	Queues    []queue
	Endpoints []endpoint
	Reasons   []bar // dead letters stored
	Streams   []bar

	Waiting, Sent, Dead float64
	Oldest              time.Duration
	Blocked             int
	Measured            bool // there is a minute, or the begin of one, to make rates of
	Minute              bool // there is a whole one
}

// series is one value with its labels.
type series struct {
	labels map[string]string
	value  float64
}

// gathered is one gathering, by name.
type gathered map[string][]series

func read(families []*dto.MetricFamily) gathered {
	g := make(gathered, len(families))
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "relay_") || f.GetType() == dto.MetricType_HISTOGRAM {
			continue
		}
		for _, m := range f.GetMetric() {
			s := series{labels: make(map[string]string), value: m.GetGauge().GetValue() + m.GetCounter().GetValue()}
			for _, l := range m.GetLabel() {
				s.labels[l.GetName()] = l.GetValue()
			}
			g[f.GetName()] = append(g[f.GetName()], s)
		}
	}
	return g
}

// sum adds up the series of a metric that have these labels: name, value, ...
func (g gathered) sum(metric string, pairs ...string) (total float64) {
	for _, s := range g[metric] {
		if s.has(pairs) {
			total += s.value
		}
	}
	return total
}

func (s series) has(pairs []string) bool {
	for i := 0; i < len(pairs); i += 2 {
		if s.labels[pairs[i]] != pairs[i+1] {
			return false
		}
	}
	return true
}

// look makes the page of what is now, and of what h has kept.
func look(program string, now sample, h *history, ready error) view {
	before := h.before(now, time.Minute)
	v := view{
		Program: program, At: now.at,
		Measured: before.at.Before(now.at),
		Minute:   now.at.Sub(before.at) > time.Minute-2*sampleEvery,
	}
	rate := func(metric string, pairs ...string) float64 { return perMinute(now, before, metric, pairs...) }
	for _, s := range now.values["relay_build_info"] {
		v.Build = build(s.labels["version"], s.labels["revision"])
	}
	if ready != nil {
		v.NotReady = ready.Error()
	}
	for _, of := range now.values["relay_attempts_total"] { // each queue of this process has some
		if of.labels["class"] == "done" {
			v.Queues = append(v.Queues, lookAt(of, h, now, before))
		}
	}
	slices.SortFunc(v.Queues, func(a, b queue) int {
		return cmp.Or(cmp.Compare(a.Destination, b.Destination), cmp.Compare(order(a.Kind), order(b.Kind)))
	})
	for _, q := range v.Queues {
		v.Waiting += q.Waiting
		v.Dead += q.Dead
		v.Oldest = max(v.Oldest, q.Oldest)
		if q.Kind != "expand" { // its rows are counted again as profiles
			v.Sent += q.Sent
		}
		if q.State == blocked {
			v.Blocked++
		}
	}
	for _, s := range now.values["relay_limiter_limit"] {
		if s.value == 0 {
			continue
		}
		name, credential := s.labels["endpoint"], s.labels["credential"]
		e := endpoint{
			Credential: credential, Name: name, Limit: s.value,
			Used: now.values.sum("relay_limiter_utilization_ratio", "credential", credential, "endpoint", name),
		}
		for _, d := range now.values["relay_destination_info"] {
			if d.labels["credential"] == credential {
				of := []string{"destination", d.labels["destination"], "endpoint", name}
				e.Calls += rate("relay_calls_total", of...)
				e.Throttled += rate("relay_calls_total", append(of, "code", "429")...)
				for _, code := range []string{"5xx", "timeout", "network"} {
					e.Lost += rate("relay_calls_total", append(of, "code", code)...)
				}
			}
		}
		v.Endpoints = append(v.Endpoints, e)
	}
	v.Reasons = reasons(now.values)
	for _, s := range now.values["relay_stream_used_ratio"] {
		v.Streams = append(v.Streams, bar{Name: s.labels["stream"], Share: s.value})
	}
	v.judge()
	return v
}

// order is that in which the kinds of a destination are worked.
func order(kind string) int {
	return slices.Index([]string{"segment", "expand", "attributes", "subscribe", "unsubscribe"}, kind)
}

// lookAt makes the row of the queue that a series is of.
func lookAt(of series, h *history, now, before sample) queue {
	kind, destination := of.labels["kind"], of.labels["destination"]
	pairs := []string{"kind", kind, "destination", destination}
	q := queue{
		Destination: destination, Kind: kind,
		Waiting: now.values.sum("relay_queue_depth", pairs...),
		Oldest:  time.Duration(now.values.sum("relay_queue_oldest_age_seconds", pairs...) * float64(time.Second)),
		Dead:    now.values.sum("relay_dead_letters", pairs...),
		Known:   len(now.values["relay_queue_depth"]) > 0,
		Owned:   now.values.sum("relay_owned", "destination", destination) > 0,
		Sent:    perMinute(now, before, "relay_rows_total", append(pairs, "stage", "sent")...),
		Line:    h.line("relay_rows_total", append(pairs, "stage", "sent")...),
		State:   idle,
	}
	for _, class := range []string{"retryable", "permanent"} {
		q.Failed += perMinute(now, before, "relay_attempts_total", append(pairs, "class", class)...)
	}
	var why []string
	for _, s := range now.values["relay_blocked"] {
		if s.value > 0 && s.has(pairs) {
			why = append(why, s.labels["reason"]+" ("+s.labels["scope"]+")")
		}
	}
	q.Why = strings.Join(why, ", ")
	switch {
	case now.values.sum("relay_paused", "destination", destination) > 0:
		q.State, q.Why = paused, "by an operator"
	case q.Why != "":
		q.State = blocked
	case q.Oldest > lateAfter:
		q.State = late
	case q.Waiting > 0 || q.Sent > 0:
		q.State = flowing
	}
	return q
}

// reasons counts the dead letters that are stored.
func reasons(g gathered) (list []bar) {
	counts, most := make(map[string]float64), 0.0
	for _, s := range g["relay_dead_letters_by_reason"] {
		counts[s.labels["reason"]] += s.value
		most = max(most, counts[s.labels["reason"]])
	}
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		list = append(list, bar{Name: reason, Count: counts[reason], Share: counts[reason] / most})
	}
	slices.SortStableFunc(list, func(a, b bar) int { return cmp.Compare(b.Count, a.Count) })
	return list
}

// judge answers in one line: is data flowing, how late, why not.
func (v *view) judge() {
	worst := func(s state) (found []queue) {
		for _, q := range v.Queues {
			if q.State == s {
				found = append(found, q)
			}
		}
		return found
	}
	name := func(list []queue) string {
		text := list[0].Kind + " of " + list[0].Destination
		if len(list) > 1 {
			text += fmt.Sprintf(" and %d more", len(list)-1)
		}
		return text
	}
	v.Verdict, v.Headline, v.Detail = idle, "Nothing waits", "Every queue of this worker is empty."
	if list := worst(flowing); len(list) > 0 {
		v.Verdict, v.Headline = flowing, "Data is flowing"
		v.Detail = "The oldest message is " + age(v.Oldest) + " old."
		if v.Waiting == 0 {
			v.Detail = "Nothing waits."
		}
	}
	if list := worst(paused); len(list) > 0 {
		v.Verdict, v.Headline, v.Detail = paused, "Paused by an operator", name(list)+": messages wait until destinations resume."
	}
	if list := worst(late); len(list) > 0 {
		slices.SortFunc(list, func(a, b queue) int { return cmp.Compare(b.Oldest, a.Oldest) })
		v.Verdict, v.Headline, v.Detail = late, "Late by "+age(list[0].Oldest), name(list)+" waits, and nothing blocks it."
		if list[0].Sent == 0 && v.Minute {
			v.Detail = name(list) + " waits, and nothing of it was sent in the last minute."
		}
	}
	if list := worst(blocked); len(list) > 0 {
		v.Verdict, v.Headline = blocked, "Blocked: "+list[0].Why
		v.Detail = name(list) + ": work waits in its queue, nothing is lost, and it goes on by itself once the cause is gone."
	}
	if v.NotReady != "" {
		v.Verdict, v.Headline, v.Detail = blocked, "Not ready", v.NotReady
	}
}

// build names what runs.
func build(version, revision string) string {
	if version == "(devel)" || version == "unknown" {
		version = "development build"
	}
	if revision != "unknown" {
		version += " " + revision[:min(len(revision), 12)]
	}
	return version
}

// age writes a duration as people say it.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
