// Package tracingtest is a collector of spans for tests: it receives what a
// program exports, as OpenTelemetry's own collector would.
package tracingtest

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Collector keeps the spans that it receives. Its methods may be called
// concurrently.
type Collector struct {
	// URL is a value of OTEL_EXPORTER_OTLP_ENDPOINT.
	URL string

	mu    sync.Mutex // guards what follows
	spans []Span
	said  strings.Builder
	down  bool
}

// Span is a span that was received.
type Span struct {
	// Service is the program that it is of.
	Service string
	Name    string
	// Trace, ID and Parent are ids in hexadecimal; Parent is empty for none.
	Trace, ID, Parent string
	// Failed says that its status is an error.
	Failed bool
	// Attributes are its attributes as text.
	Attributes map[string]string
}

// Start starts a collector that stops at the end of the test.
func Start(t *testing.T) *Collector {
	t.Helper()
	c := &Collector{}
	server := httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

// Break makes the collector refuse what it is sent from now on.
func (c *Collector) Break() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = true
}

func (c *Collector) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down || r.URL.Path != "/v1/traces" {
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = unpacked
	}
	data, err := io.ReadAll(body)
	var request collectorv1.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(data, &request)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	// As JSON, which writes ids in base64: their bytes as text would be some person's
	// "c-1" one day.
	c.said.WriteString(protojson.Format(&request))
	for _, of := range request.GetResourceSpans() {
		service := ""
		for _, a := range of.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range of.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, read(service, s))
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func read(service string, s *tracev1.Span) Span {
	attributes := make(map[string]string)
	for _, a := range s.GetAttributes() {
		attributes[a.GetKey()] = text(a.GetValue())
	}
	return Span{
		Service: service, Name: s.GetName(),
		Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
		Failed:     s.GetStatus().GetCode() == tracev1.Status_STATUS_CODE_ERROR,
		Attributes: attributes,
	}
}

// text returns a value of an attribute; ours are texts and whole numbers.
func text(v *commonv1.AnyValue) string {
	if _, ok := v.GetValue().(*commonv1.AnyValue_IntValue); ok {
		return strconv.FormatInt(v.GetIntValue(), 10)
	}
	return v.GetStringValue()
}

// Spans returns the spans received so far, of one trace if it is not empty.
func (c *Collector) Spans(trace string) []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []Span
	for _, s := range c.spans {
		if trace == "" || s.Trace == trace {
			list = append(list, s)
		}
	}
	return list
}

// Text returns all that was received, as text.
func (c *Collector) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said.String()
}
