// Package tracing follows a message from its publisher to the call or the file
// that it becomes, by W3C trace context and OpenTelemetry.
//
// It is off, and costs next to nothing, unless the usual variables name a
// collector: OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT.
// All other variables of the OpenTelemetry specification that concern traces
// count too, such as OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
// OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and OTEL_SDK_DISABLED. Spans are
// sent by OTLP over HTTP. A collector that does not answer costs spans, and
// delays nothing else.
//
// The tracer travels in the context: what is called deep below a job begins its
// spans with [Start] and needs to be handed nothing. Trace context is passed on
// also while tracing is off, so that a trace is not cut here.
//
// No span names a person, a row, or what a call says; its attributes are those of
// our log lines.
package tracing

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"attentive.internal/pkg/fault"
)

// scope names the instrumentation in what is exported.
const scope = "attentive-relay"

// parentHeader is the header of W3C trace context that names a trace.
const parentHeader = "traceparent"

// closeTimeout bounds what is still exported when a program stops.
const closeTimeout = 3 * time.Second

// Tracer begins the traces of one program. Its methods may be called
// concurrently, also on a nil Tracer, which is off.
type Tracer struct {
	provider *sdktrace.TracerProvider // nil when off
	tracer   trace.Tracer
}

// Open returns the tracer of a program as the environment asks for it; program is
// its service name, unless OTEL_SERVICE_NAME says another. A setting that cannot
// be followed is logged, and tracing is off: work does not depend on it. The
// caller calls Close.
func Open(ctx context.Context, program string, log *slog.Logger) *Tracer {
	if !wanted() {
		return nil
	}
	if protocol := firstOf("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); protocol != "" && protocol != "http/protobuf" {
		log.ErrorContext(ctx, "tracing is off: spans are sent by http/protobuf only; set OTEL_EXPORTER_OTLP_PROTOCOL to it, and the endpoint to the collector's HTTP port",
			"protocol", protocol)
		return nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		log.ErrorContext(ctx, "tracing is off", "err", err)
		return nil
	}
	described, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", program), attribute.String("service.namespace", scope)),
		resource.WithFromEnv()) // the last one wins
	if err != nil {
		log.WarnContext(ctx, "OTEL_RESOURCE_ATTRIBUTES is followed in part", "err", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&quietly{SpanExporter: exporter, log: log}),
		sdktrace.WithResource(described))
	return &Tracer{provider: provider, tracer: provider.Tracer(scope)}
}

// wanted reports whether the environment asks for traces.
func wanted() bool {
	endpoint := firstOf("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	exporter := firstOf("OTEL_TRACES_EXPORTER")
	return endpoint != "" && !strings.EqualFold(firstOf("OTEL_SDK_DISABLED"), "true") && (exporter == "" || exporter == "otlp")
}

// firstOf returns the value of the first variable that has one.
func firstOf(names ...string) string {
	for _, name := range names {
		if value := strings.TrimSpace(os.Getenv(name)); value != "" {
			return value
		}
	}
	return ""
}

// Close sends what is not sent yet, although ctx may have ended, and does not wait
// long for a collector that does not answer. No span may begin afterwards.
func (t *Tracer) Close(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // what was lost has been logged
}

// Span is something that is being done. The zero Span is that of work that is not
// traced.
type Span struct{ span trace.Span }

// Receive begins the span of the work on a message, as a child of the publisher's
// span if its headers name one. The caller ends it.
func (t *Tracer) Receive(ctx context.Context, h nats.Header, name string, attributes ...slog.Attr) (context.Context, Span) {
	ctx = propagation.TraceContext{}.Extract(ctx, carrier(h))
	if t == nil {
		return ctx, Span{}
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(values(attributes)...))
	return ctx, Span{span}
}

// Start begins a span of something that another system is asked for, below the
// work that ctx belongs to. Below work that is not traced it does nothing. The
// caller ends it.
func Start(ctx context.Context, name string, attributes ...slog.Attr) (context.Context, Span) {
	above := trace.SpanFromContext(ctx)
	if !above.IsRecording() {
		return ctx, Span{}
	}
	ctx, span := above.TracerProvider().Tracer(scope).
		Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(values(attributes)...))
	return ctx, Span{span}
}

// Add adds attributes to those that the span began with.
func (s Span) Add(attributes ...slog.Attr) {
	if s.span != nil {
		s.span.SetAttributes(values(attributes)...)
	}
}

// End ends the span with what became of it. Work that was interrupted has not
// failed.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if f := fault.Of(err); f != nil {
		s.Add(slog.String("error_type", cmp.Or(string(f.Reason), f.Class.String())), slog.String("class", f.Class.String()))
		if f.Class != fault.Interrupted {
			s.span.SetStatus(codes.Error, err.Error())
		}
	}
	s.span.End()
}

// Event marks a moment of the span that ctx is in.
func Event(ctx context.Context, name string) { trace.SpanFromContext(ctx).AddEvent(name) }

// values returns attributes as the library has them.
func values(attributes []slog.Attr) []attribute.KeyValue {
	list := make([]attribute.KeyValue, len(attributes))
	for i, a := range attributes {
		key := convention(a.Key)
		switch a.Value.Kind() {
		case slog.KindInt64:
			list[i] = attribute.Int64(key, a.Value.Int64())
		default:
			list[i] = attribute.String(key, a.Value.String())
		}
	}
	return list
}

// convention returns the name that OpenTelemetry's semantic conventions give to
// what has the name key in our log.
func convention(key string) string {
	switch key {
	case "error_type":
		return "error.type"
	case "server_address":
		return "server.address"
	case "http_method":
		return "http.request.method"
	case "http_path":
		return "url.path"
	case "http_status":
		return "http.response.status_code"
	}
	return key
}

// Inject writes the trace context of ctx into the headers of a message.
func Inject(ctx context.Context, h nats.Header) {
	propagation.TraceContext{}.Inject(ctx, carrier(h))
}

// Logged returns a logger whose lines name the trace that a message belongs to, if
// its publisher has begun one.
func Logged(log *slog.Logger, h nats.Header) *slog.Logger {
	parts := strings.Split(carrier(h).Get(parentHeader), "-")
	if len(parts) < 4 {
		return log
	}
	id, err := trace.TraceIDFromHex(parts[1])
	if err != nil {
		return log
	}
	return log.With("trace_id", id.String())
}

// carrier reads and writes trace context in the headers of a message.
type carrier nats.Header

// Get implements propagation.TextMapCarrier. HTTP libraries of publishers change
// the case of names, which NATS tells apart.
func (c carrier) Get(key string) string {
	if values := c[key]; len(values) > 0 {
		return values[0]
	}
	for name, values := range c {
		if strings.EqualFold(name, key) && len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (c carrier) Set(key, value string) { c[key] = []string{value} }

// Keys implements propagation.TextMapCarrier.
func (c carrier) Keys() []string {
	names := make([]string, 0, len(c))
	for name := range c {
		names = append(names, name)
	}
	return names
}

// quietly exports spans, and logs when that begins to fail and when it works
// again.
type quietly struct {
	sdktrace.SpanExporter

	log     *slog.Logger
	failing atomic.Bool
	lost    atomic.Int64
}

// ExportSpans implements sdktrace.SpanExporter. It returns no error: the library
// would write it where no logger of ours is.
func (q *quietly) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := q.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err == nil && q.failing.Swap(false):
		q.log.InfoContext(ctx, "spans are exported again", "lost", q.lost.Swap(0))
	case err != nil && !errors.Is(err, context.Canceled):
		q.lost.Add(int64(len(spans)))
		if !q.failing.Swap(true) {
			q.log.WarnContext(ctx, "spans cannot be exported and are lost; the work goes on", "err", err)
		}
	}
	return nil
}
