package source_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/peer"
	"attentive.internal/pkg/source"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	s3Key    = "relay-key"
	s3Secret = "relay-secret-of-a-test"
)

// gateway starts a real S3 server, with what between before it, and returns its
// address and a client that may write.
func gateway(t *testing.T, between func(http.Handler) http.Handler) (address string, client *minio.Client) {
	t.Helper()
	program := peer.Need(t, "versitygw")
	dir, err := os.MkdirTemp("", "s3-") //nolint:usetesting // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	socket := filepath.Join(dir, "sock")
	for _, folder := range []string{"data", "meta"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), program, "--access", s3Key, "--secret", s3Secret, "--port", socket,
		"posix", "--sidecar", filepath.Join(dir, "meta"), filepath.Join(dir, "data"))
	cmd.WaitDelay = 10 * time.Second
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // with "killed"
		if t.Failed() {
			t.Logf("versitygw: %s", log.String())
		}
	})
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", r.In.Host
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}, DisableCompression: true},
		FlushInterval: -1,
	}
	server := httptest.NewServer(between(proxy))
	t.Cleanup(server.Close)
	address = server.URL
	client, err = minio.New(strings.TrimPrefix(address, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(s3Key, s3Secret, ""), Region: "us-east-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if err := client.MakeBucket(t.Context(), "audiences", minio.MakeBucketOptions{}); err == nil {
			return address, client
		} else if time.Now().After(deadline) {
			t.Fatalf("make a bucket: %v", err)
		}
		time.Sleep(50 * time.Millisecond) // between two looks
	}
}

// putIn stores an object in the bucket.
func putIn(t *testing.T, c *minio.Client, key string, data []byte) {
	t.Helper()
	if _, err := c.PutObject(t.Context(), "audiences", key, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestBucket reads from a real S3 server with the credentials of the environment. It
// does not run beside other tests.
func TestBucket(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", s3Key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3Secret)
	var limit atomic.Int64
	var gets atomic.Int64
	var onRange atomic.Pointer[func()]
	address, client := gateway(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				gets.Add(1)
			}
			if f := onRange.Load(); f != nil && r.Header.Get("Range") != "" {
				(*f)()
			}
			if n := limit.Load(); n > 0 && r.Method == http.MethodGet {
				cut(int(n), h.ServeHTTP)(w, r)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	text := phones(60_000)
	putIn(t, client, "daily/a b+c.csv", text)
	putIn(t, client, "daily/packed.csv.gz", gzipped(t, text))
	putIn(t, client, "secret/s.csv", text)
	o, err := source.New(source.Config{Prefixes: []string{"s3://audiences/daily/", "s3://nowhere/"}, S3: source.S3{Endpoint: address}})
	if err != nil {
		t.Fatal(err)
	}
	o.SetPatience(time.Second, 10*time.Second)

	t.Run("whole", func(t *testing.T) {
		s := at("s3://audiences/daily/a%20b+c.csv")
		sum := sha256.Sum256(text)
		s.Sha256 = sum[:]
		rows, print, err := readFrom(t, o, s)
		if err != nil || len(rows) != 60_000 || print.SHA256 != sum {
			t.Errorf("%d rows, %v, %v", len(rows), print, err)
		}
	})
	t.Run("compressed", func(t *testing.T) {
		s := at("s3://audiences/daily/packed.csv.gz")
		s.Compression = gz
		if rows, _, err := readFrom(t, o, s); err != nil || len(rows) != 60_000 {
			t.Errorf("%d rows, %v", len(rows), err)
		}
	})
	t.Run("cut again and again", func(t *testing.T) {
		limit.Store(200_000)
		defer limit.Store(0)
		gets.Store(0)
		rows, print, err := readFrom(t, o, at("s3://audiences/daily/a%20b+c.csv"))
		if err != nil || len(rows) != 60_000 || print.SHA256 != sha256.Sum256(text) {
			t.Errorf("%d rows, %v, %v", len(rows), print, err)
		}
		if gets.Load() < int64(len(text)/200_000) {
			t.Errorf("%d requests for %d bytes, 200,000 at most in each", gets.Load(), len(text))
		}
	})
	t.Run("replaced while it is read", func(t *testing.T) {
		putIn(t, client, "daily/moving.csv", text)
		limit.Store(200_000)
		defer limit.Store(0)
		replace := func() {
			putIn(t, client, "daily/moving.csv", bytes.ReplaceAll(text, []byte("+1415"), []byte("+1416")))
		}
		onRange.Store(&replace)
		defer onRange.Store(nil)
		_, _, err := readFrom(t, o, at("s3://audiences/daily/moving.csv"))
		wantFault(t, err, fault.SourceChanged, "replaced")
	})
	t.Run("missing", func(t *testing.T) {
		_, _, err := readFrom(t, o, at("s3://audiences/daily/nothing.csv"))
		wantFault(t, err, fault.SourceMissing)
		_, _, err = readFrom(t, o, at("s3://nowhere/a.csv"))
		wantFault(t, err, fault.SourceMissing)
	})
	t.Run("outside", func(t *testing.T) {
		for _, url := range []string{"s3://audiences/secret/s.csv", "s3://audiences/daily/../secret/s.csv", "s3://audiences/daily/%2e%2e/secret/s.csv"} {
			_, _, err := readFrom(t, o, at(url))
			wantFault(t, err, fault.SourceForbidden, "source_prefixes")
		}
	})
	t.Run("credentials are refused, and renewed without a restart", func(t *testing.T) {
		t.Setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
		stale, err := source.New(source.Config{Prefixes: []string{"s3://audiences/daily/"}, S3: source.S3{Endpoint: address, Region: "us-east-1"}})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = readFrom(t, stale, at("s3://audiences/daily/packed.csv.gz"))
		f := fault.Of(err)
		if err == nil || f.Class != fault.Blocked || f.Scope != fault.ScopeDestination || f.Reason != fault.LogInRefused || strings.Contains(err.Error(), "not the secret") {
			t.Fatalf("error %v, want the destination blocked until the credentials are renewed", err)
		}
		t.Setenv("AWS_SECRET_ACCESS_KEY", s3Secret)
		if rows, _, err := readFrom(t, stale, at("s3://audiences/daily/a%20b+c.csv")); err != nil || len(rows) != 60_000 {
			t.Errorf("with the right secret: %d rows, %v", len(rows), err)
		}
	})
}

func TestBucketFaults(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"ftp://host", "host", "https://", "https://host/path"} {
		if _, err := source.New(source.Config{S3: source.S3{Endpoint: bad}}); err == nil {
			t.Errorf("New accepts the endpoint %q", bad)
		}
	}
}
