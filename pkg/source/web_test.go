package source_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
)

// web starts an HTTPS server and an opener that may read what lies below /data/.
func web(t testing.TB, h http.HandlerFunc) (*source.Opener, *httptest.Server) {
	t.Helper()
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	o, err := source.New(source.Config{Prefixes: []string{server.URL + "/data/"}})
	if err != nil {
		t.Fatal(err)
	}
	o.Trust(server.Certificate())
	return o, server
}

// readFrom reads all rows of s.
func readFrom(t testing.TB, o *source.Opener, s *attentivev1.Source) (rows [][]string, print source.Fingerprint, err error) {
	t.Helper()
	r, err := o.Open(t.Context(), s)
	if err != nil {
		return nil, source.Fingerprint{}, err
	}
	rows, err = drain(t, r)
	return rows, r.Fingerprint(), err
}

// serve answers as a file server does, for one file.
func serve(data []byte, tag string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if tag != "" {
			w.Header().Set("ETag", tag)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
}

// cut lets a handler send no more than limit bytes of each answer, and closes the
// connection then.
func cut(limit int, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { h(&cutting{w, limit}, r) }
}

type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; err == nil && n < len(p) {
		if flush, ok := c.ResponseWriter.(http.Flusher); ok {
			flush.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestWeb(t *testing.T) {
	t.Parallel()
	text := phones(60_000)
	packed := gzipped(t, text)
	var asked atomic.Value
	o, server := web(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Header.Get("Accept-Encoding") + " " + r.URL.String())
		w.Header().Set("Content-Encoding", "gzip") // the object is gzip; nobody unpacks it on the way
		serve(packed, "")(w, r)
	})
	s := at(server.URL + "/data/a.csv.gz?token=secret")
	s.Compression = gz
	sum := sha256.Sum256(packed)
	s.Sha256 = sum[:]
	rows, print, err := readFrom(t, o, s)
	if err != nil || len(rows) != 60_000 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if want := (source.Fingerprint{SHA256: sum, Size: uint64(len(packed))}); print != want {
		t.Errorf("Fingerprint = %v, want %v", print, want)
	}
	if got, want := asked.Load(), "identity /data/a.csv.gz?token=secret"; got != want {
		t.Errorf("the server was asked for %q, want %q", got, want)
	}
}

// TestWebGoesOn cuts each answer after a number of bytes: the rest is asked for, and
// nothing is read twice or left out.
func TestWebGoesOn(t *testing.T) {
	t.Parallel()
	text := phones(20_000)
	_, whole, err := readAll(t, inline(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{7_001, 65_536, 100_000, len(text) - 1} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int64
			o, server := web(t, func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				cut(limit, serve(text, `"1"`))(w, r)
			})
			rows, print, err := readFrom(t, o, at(server.URL+"/data/a.csv"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(whole, rows); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			if print.SHA256 != sha256.Sum256(text) {
				t.Error("the fingerprint is not that of the bytes")
			}
			// A connection that breaks may lose what was sent last.
			if least := int64((len(text) + limit - 1) / limit); requests.Load() < least {
				t.Errorf("%d requests, want at least %d", requests.Load(), least)
			}
		})
	}
}

// TestWebIsNoMixture replaces the source while it is read.
func TestWebIsNoMixture(t *testing.T) {
	t.Parallel()
	before, after := phones(20_000), bytes.ReplaceAll(phones(20_000), []byte("+1415"), []byte("+1416"))
	for name, second := range map[string]http.HandlerFunc{
		"refused by the server": serve(after, `"2"`),
		"the server sends another version although asked for the first": func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Match")
			serve(after, `"2"`)(w, r)
		},
		"another length under the same version": func(w http.ResponseWriter, r *http.Request) {
			serve(append(after, '\n'), `"1"`)(w, r)
		},
		"shorter": func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Match")
			serve(after[:10], `"2"`)(w, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, server := web(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") == "" {
					cut(50_000, serve(before, `"1"`))(w, r)
					return
				}
				second(w, r)
			})
			_, _, err := readFrom(t, o, at(server.URL+"/data/a.csv"))
			wantFault(t, err, fault.SourceChanged, "replaced")
		})
	}
}

// TestWebFailsRetryably lists what may be better next time.
func TestWebFailsRetryably(t *testing.T) {
	t.Parallel()
	text := phones(20_000)
	stalled := make(chan struct{})
	t.Cleanup(func() { close(stalled) })
	stall := func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-stalled:
		}
		panic(http.ErrAbortHandler)
	}
	for name, tt := range map[string]struct {
		h    http.HandlerFunc
		says string
	}{
		"no version":         {cut(50_000, serve(text, "")), "no strong ETag"},
		"only a weak one":    {cut(50_000, serve(text, `W/"1"`)), "no strong ETag"},
		"no headers come":    {stall, "nothing came"},
		"status 503":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "503"},
		"status 429":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, "429"},
		"no more bytes come": {func(w http.ResponseWriter, r *http.Request) { cut(50_000, serve(text, `"1"`))(w, r) }, ""},
		"ranges are ignored": {func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			cut(50_000, serve(text, `"1"`))(w, r)
		}, "sends all of it again"},
		"it stalls in the middle": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				stall(w, r)
			}
			cut(50_000, serve(text, `"1"`))(w, r)
		}, "sent nothing more"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "no more bytes come" {
				var first atomic.Bool
				h := tt.h
				tt.h = func(w http.ResponseWriter, r *http.Request) {
					if first.Swap(true) {
						w.WriteHeader(http.StatusBadGateway)
						return
					}
					h(w, r)
				}
				tt.says = "502"
			}
			o, server := web(t, tt.h)
			o.SetPatience(time.Second, 5*time.Second) // a busy machine may take a second for a request
			_, _, err := readFrom(t, o, at(server.URL+"/data/a.csv?token=secret"))
			if err == nil || fault.ClassOf(err) != fault.Retryable || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "secret") {
				t.Errorf("error %v (%v): want a retryable one that says %q, and not the query", err, fault.ClassOf(err), tt.says)
			}
		})
	}
}

func TestWebUnreachable(t *testing.T) {
	t.Parallel()
	o, server := web(t, serve(phones(1), ""))
	server.Close()
	_, _, err := readFrom(t, o, at(server.URL+"/data/a.csv?token=secret"))
	if err == nil || fault.ClassOf(err) != fault.Retryable || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v: want a retryable one without the query", err)
	}
	again := httptest.NewTLSServer(serve(phones(1), ""))
	defer again.Close()
	stranger, err := source.New(source.Config{Prefixes: []string{again.URL + "/data/"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := readFrom(t, stranger, at(again.URL+"/data/a.csv")); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("error %v: want one about the certificate, which nobody vouches for", err)
	}
}

func TestWebFaults(t *testing.T) {
	t.Parallel()
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, tt := range map[string]struct {
		h      http.HandlerFunc
		reason fault.Reason
		says   string
	}{
		"404":                   {status(404), fault.SourceMissing, "404"},
		"410":                   {status(410), fault.SourceMissing, "410"},
		"401":                   {status(401), fault.SourceForbidden, "401"},
		"403":                   {status(403), fault.SourceForbidden, "expired"},
		"400":                   {status(400), fault.SourceUnreadable, "400"},
		"204":                   {status(204), fault.SourceUnreadable, "204"},
		"a redirect to nowhere": {status(304), fault.SourceUnreadable, "304"},
		"no length": {func(w http.ResponseWriter, _ *http.Request) {
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, err = buf.WriteString("HTTP/1.0 200 OK\r\n\r\nphone\n+14155552671\n")
			if err := errors.Join(err, buf.Flush(), conn.Close()); err != nil {
				t.Error(err)
			}
		}, fault.SourceUnreadable, "how long"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, server := web(t, tt.h)
			_, _, err := readFrom(t, o, at(server.URL+"/data/a.csv?token=secret"))
			wantFault(t, err, tt.reason, tt.says)
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("error %q shows the query", err)
			}
		})
	}
}

// TestWebRedirects follows those that stay below a prefix, and asks nobody else.
func TestWebRedirects(t *testing.T) {
	t.Parallel()
	var strangers atomic.Int64
	stranger := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { strangers.Add(1) }))
	t.Cleanup(stranger.Close)
	plain := httptest.NewServer(stranger.Config.Handler)
	t.Cleanup(plain.Close)
	var own string
	o, server := web(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/data/there.csv":
			serve(phones(3), "")(w, r)
		case "/data/loop.csv":
			http.Redirect(w, r, own+"/data/loop.csv", http.StatusFound)
		case "/data/a.csv":
			w.Header().Set("Location", r.URL.Query().Get("to"))
			w.WriteHeader(http.StatusTemporaryRedirect)
		default:
			strangers.Add(1)
		}
	})
	own = server.URL
	for name, tt := range map[string]struct {
		url    string
		reason fault.Reason // "": it is read
	}{
		"below the prefix":      {"/data/a.csv?to=/data/there.csv", ""},
		"absolute":              {"/data/a.csv?to=" + server.URL + "/data/there.csv", ""},
		"beside the prefix":     {"/data/a.csv?to=/secret.csv", fault.SourceForbidden},
		"up from the prefix":    {"/data/a.csv?to=/data/../secret.csv", fault.SourceForbidden},
		"up, encoded":           {"/data/a.csv?to=/data/%252e%252e/secret.csv", fault.SourceForbidden},
		"another host":          {"/data/a.csv?to=" + stranger.URL + "/data/there.csv%3Ftoken=hidden", fault.SourceForbidden},
		"without TLS":           {"/data/a.csv?to=" + plain.URL + "/data/there.csv", fault.SourceForbidden},
		"with a user name":      {"/data/a.csv?to=" + strings.Replace(server.URL, "://", "://u:hidden@", 1) + "/data/there.csv", fault.SourceForbidden},
		"for ever":              {"/data/loop.csv", fault.SourceUnreadable},
		"dots in the job's URL": {"/data/../secret.csv", fault.SourceForbidden},
		"encoded dots":          {"/data/%2e%2e/secret.csv", fault.SourceForbidden},
		"encoded slashes":       {"/data/..%2fsecret.csv", fault.SourceForbidden},
		"backslashes":           {`/data/x/..%5c..%5csecret.csv`, fault.SourceForbidden},
		"empty segment":         {"/data//secret.csv", fault.SourceForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rows, _, err := readFrom(t, o, at(own+tt.url))
			if tt.reason != "" {
				wantFault(t, err, tt.reason)
				if strings.Contains(err.Error(), "hidden") {
					t.Errorf("error %q shows a secret", err)
				}
			} else if err != nil || len(rows) != 3 {
				t.Errorf("%d rows, %v; want 3", len(rows), err)
			}
		})
	}
	t.Cleanup(func() {
		if n := strangers.Load(); n != 0 {
			t.Errorf("%d requests to what no prefix allows", n)
		}
	})
}

func TestWebEndsWithItsContext(t *testing.T) {
	t.Parallel()
	o, server := web(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		if _, err := w.Write(phones(100)); err != nil {
			return
		}
		<-r.Context().Done()
	})
	lost := errors.New("lost the lease")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	time.AfterFunc(100*time.Millisecond, func() { cancel(lost) })
	r, err := o.Open(ctx, at(server.URL+"/data/a.csv"))
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, lost) || fault.ClassOf(err) == fault.Permanent {
		t.Errorf("error %v, want the context's cause", err)
	}
}
