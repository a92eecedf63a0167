package tracing_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/tracing"
	"attentive.internal/pkg/tracing/tracingtest"
)

// Of a publisher.
const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID  = "00f067aa0ba902b7"
	parent  = "00-" + traceID + "-" + spanID + "-01"
)

// environment clears what the machine that tests says of telemetry, but for what
// is given.
func environment(t *testing.T, pairs ...string) {
	t.Helper()
	for _, name := range []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL",
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER",
	} {
		t.Setenv(name, "")
	}
	for i := 0; i < len(pairs); i += 2 {
		t.Setenv(pairs[i], pairs[i+1])
	}
}

// TestFromPublisherToCall: the spans of a message hang together, and below the
// publisher's.
func TestFromPublisherToCall(t *testing.T) {
	collector := tracingtest.Start(t)
	environment(t, "OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	tracer := tracing.Open(t.Context(), "segment-worker", slog.New(slog.DiscardHandler))
	ctx, span := tracer.Receive(t.Context(), nats.Header{"Traceparent": {parent}}, "segment job", slog.String("job_id", "j-1"))
	next := nats.Header{}
	tracing.Inject(ctx, next)
	tracing.Event(ctx, "turn")
	_, call := tracing.Start(ctx, "sftp put", slog.Int("bytes", 7))
	call.End(fault.Blockedf(fault.ScopeAccount, fault.LogInRefused, "no"))
	span.End(fault.Interruptedf("stopping"))
	tracer.Close(t.Context())

	spans := make(map[string]tracingtest.Span)
	for _, s := range collector.Spans(traceID) {
		spans[s.Name] = s
	}
	job, put := spans["segment job"], spans["sftp put"]
	if job.Parent != spanID || put.Parent != job.ID || job.ID == "" {
		t.Errorf("the publisher's span %s, the job's %+v, the call's %+v: want one below the other", spanID, job, put)
	}
	if job.Service != "segment-worker" || job.Attributes["job_id"] != "j-1" || job.Failed {
		t.Errorf("job = %+v, want that of segment-worker, j-1, interrupted and so not failed", job)
	}
	if !put.Failed || put.Attributes["error.type"] != "log_in_refused" || put.Attributes["bytes"] != "7" {
		t.Errorf("call = %+v, want 7 bytes and the reason of its failure", put)
	}
	if got, want := next.Get("traceparent"), "00-"+traceID+"-"+job.ID+"-01"; got != want {
		t.Errorf("passed on %q, want %q", got, want)
	}
}

// TestOff: without the variables nothing is exported, and trace context is passed
// on all the same.
func TestOff(t *testing.T) {
	collector := tracingtest.Start(t)
	for name, pairs := range map[string][]string{
		"no variables":   nil,
		"disabled":       {"OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL, "OTEL_SDK_DISABLED", "true"},
		"no exporter":    {"OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL, "OTEL_TRACES_EXPORTER", "none"},
		"another way in": {"OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"},
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, pairs...)
			var said bytes.Buffer
			tracer := tracing.Open(t.Context(), "segment-worker", slog.New(slog.NewTextHandler(&said, nil)))
			ctx, span := tracer.Receive(t.Context(), nats.Header{"traceparent": {parent}}, "segment job")
			_, call := tracing.Start(ctx, "sftp put")
			call.End(nil)
			span.End(errors.New("no"))
			tracer.Close(t.Context())
			next := nats.Header{}
			tracing.Inject(ctx, next)
			if got := next.Get("traceparent"); got != parent {
				t.Errorf("passed on %q, want %q", got, parent)
			}
			if spans := collector.Spans(""); len(spans) > 0 {
				t.Errorf("exported %+v", spans)
			}
			if told := strings.Contains(said.String(), "tracing is off"); told != (name == "another way in") {
				t.Errorf("logged %q", said.String())
			}
		})
	}
}

// TestCollectorDown: its failure is told of once, and delays nobody.
func TestCollectorDown(t *testing.T) {
	collector := tracingtest.Start(t)
	collector.Break()
	environment(t, "OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1", "OTEL_BSP_MAX_QUEUE_SIZE", "10")
	var said bytes.Buffer
	tracer := tracing.Open(t.Context(), "segment-worker", slog.New(slog.NewTextHandler(&said, nil)))
	for range 5 {
		_, span := tracer.Receive(t.Context(), nil, "segment job")
		span.End(nil)
	}
	tracer.Close(t.Context())
	if got := strings.Count(said.String(), "spans cannot be exported"); got != 1 {
		t.Errorf("told %d times of a collector that is down, want once:\n%s", got, said.String())
	}
}

func TestLogged(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		parent: traceID, "": "", "00-1": "", "00-" + strings.Repeat("0", 32) + "-" + spanID + "-01": "", "+12065550101": "",
	} {
		var said bytes.Buffer
		tracing.Logged(slog.New(slog.NewTextHandler(&said, nil)), nats.Header{"traceparent": {header}}).Info("done")
		_, got, _ := strings.Cut(strings.TrimSpace(said.String()), " trace_id=")
		if got != want {
			t.Errorf("traceparent %q is logged as %q, want %q", header, got, want)
		}
	}
}
