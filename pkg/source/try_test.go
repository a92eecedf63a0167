package source_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"attentive.internal/pkg/source"
)

// tries has an Opener try a prefix, and compares what it says.
func tries(t *testing.T, o *source.Opener, prefix, want string) {
	t.Helper()
	found, err := o.Try(t.Context(), prefix)
	if err != nil {
		found = err.Error()
	}
	if !strings.Contains(found, want) {
		t.Errorf("try %s = %q, want %q", prefix, found, want)
	}
	if strings.Contains(found, "only a job shows") != errors.Is(err, source.ErrUntried) {
		t.Errorf("try %s = %v, which is to be told from what is wrong", prefix, err)
	}
}

func opener(t *testing.T, cfg source.Config) *source.Opener {
	t.Helper()
	o, err := source.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestTryFolderAndServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := opener(t, source.Config{})
	tries(t, o, "file://"+dir+"/", "the folder can be opened")
	tries(t, o, "file://"+filepath.Join(dir, "nowhere"), "mount or create the folder")
	tries(t, o, "https://127.0.0.1:1/", "check the address")
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead {
			t.Errorf("it is asked to %s", r.Method)
		}
		if r.URL.Path == "/broken/" {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	t.Cleanup(server.Close)
	tries(t, o, server.URL, "certificate")
	o.Trust(server.Certificate())
	tries(t, o, server.URL+"/", "the server answers, with status 404")
	tries(t, o, server.URL+"/broken/", "status 502: only a job shows")
}

// TestTryBucket asks a real S3 server with the credentials of the environment. It
// does not run beside other tests.
func TestTryBucket(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", s3Key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3Secret)
	var refuses atomic.Bool
	address, client := gateway(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if refuses.Load() { // as for credentials that may get objects only
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(http.StatusForbidden)
				_, _ = w.Write([]byte("<Error><Code>AccessDenied</Code></Error>")) // the client looks
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	cfg := source.Config{S3: source.S3{Endpoint: address, Region: "us-east-1"}}
	o := opener(t, cfg)
	tries(t, o, "s3://audiences/2026/", "no object there yet")
	putIn(t, client, "2026/a.csv", []byte("phone\n"))
	tries(t, o, "s3://audiences/2026/", "has objects there")
	tries(t, o, "s3://elsewhere/", `no bucket "elsewhere"`)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	tries(t, opener(t, cfg), "s3://audiences/", "refuses the worker's credentials (SignatureDoesNotMatch)")
	refuses.Store(true)
	tries(t, o, "s3://audiences/", "may not be listed by the worker's credentials (AccessDenied): only a job shows")
}
