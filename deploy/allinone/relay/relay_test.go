package relay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"attentive.internal/deploy/allinone/relay"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/loopback/loopbacktest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// connected is a connection to the broker within the process.
func connected(t *testing.T, b *relay.Broker) *broker.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := broker.Connect(ctx, broker.Options{InProcess: b.InProcess(), Name: t.Name()}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Ensure(ctx, broker.Settings{}); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestBrokerKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	for name, sync := range map[string]relay.Sync{"sometimes": relay.SyncSometimes, "always": relay.SyncAlways} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := relay.BrokerConfig{Dir: t.TempDir(), Address: loopbacktest.Reserve(t).Address(), Sync: sync, Log: quiet()}
			for _, want := range []string{"", "kept"} {
				b, err := relay.StartBroker(cfg)
				if err != nil {
					t.Fatal(err)
				}
				if !strings.HasSuffix(b.URL(), cfg.Address) {
					t.Errorf("URL %s, want one at %s", b.URL(), cfg.Address)
				}
				conn := connected(t, b)
				kv, err := conn.JS.KeyValue(t.Context(), broker.BucketFiles)
				if err != nil {
					t.Fatal(err)
				}
				got := ""
				if entry, err := kv.Get(t.Context(), "k"); err == nil {
					got = string(entry.Value())
				}
				if got != want {
					t.Errorf("the broker has %q, want %q", got, want)
				}
				if _, err := kv.PutString(t.Context(), "k", "kept"); err != nil {
					t.Fatal(err)
				}
				conn.NC.Close()
				b.Stop()
			}
		})
	}
}

func TestBrokerRefuses(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		dir, address string
		says         []string
	}{
		"every address":      {t.TempDir(), "0.0.0.0:4222", []string{"0.0.0.0:4222", "not on loopback", "127.0.0.1"}},
		"another machine":    {t.TempDir(), "example.com:4222", []string{"example.com:4222", "not on loopback"}},
		"no port":            {t.TempDir(), "127.0.0.1", []string{"host:port"}},
		"port 0":             {t.TempDir(), "127.0.0.1:0", []string{"1 to 65535"}},
		"a taken port":       {t.TempDir(), taken.Addr().String(), []string{taken.Addr().String(), "choose another port"}},
		"a file for its dir": {file, loopbacktest.Reserve(t).Address(), []string{file}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := relay.StartBroker(relay.BrokerConfig{Dir: tt.dir, Address: tt.address, Log: quiet()})
			if err == nil {
				b.Stop()
				t.Fatal("the broker started")
			}
			for _, part := range tt.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error does not say %q: %v", part, err)
				}
			}
		})
	}
	for _, address := range []string{"localhost:4222", "127.0.0.1:4222", "127.1.2.3:1", "[::1]:4222"} {
		if err := relay.CheckAddress(address); err != nil {
			t.Errorf("CheckAddress(%q) = %v, want nil", address, err)
		}
	}
}

// config is one without anything to work.
const config = `
broker: {url: "nats://127.0.0.1:4222"}
lease: 2s
credentials: [{id: api, type: attentive-api, base_url: "http://127.0.0.1:1", api_key: {file: key}}]
destinations:
- {id: attributes, plugin: attentive-api, credential: api, settings: {identifier: phone}, templates: [{id: default, columns: {phone: phone}}]}
`

func TestWorkers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "relay.yaml")
	for name, text := range map[string]string{file: config, filepath.Join(dir, "key"): "key"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := relay.StartBroker(relay.BrokerConfig{Dir: filepath.Join(dir, "broker"), Address: loopbacktest.Reserve(t).Address(), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	workers := relay.Workers{ConfigFile: file, SegmentOps: "127.0.0.1:0", AttributesOps: "127.0.0.1:0", Broker: b, Log: quiet()}

	t.Run("stop cleanly", func(t *testing.T) {
		var log bytes.Buffer
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		workers := workers
		workers.Log = slog.New(slog.NewTextHandler(&stopper{&log, "account is owned", stop}, nil))
		if err := workers.Run(ctx); err != nil || !errors.Is(ctx.Err(), context.Canceled) {
			t.Errorf("Run = %v after %v, want nil after it was stopped at work:\n%s", err, ctx.Err(), &log)
		}
	})
	t.Run("one that cannot start stops the other", func(t *testing.T) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		workers := workers
		workers.AttributesOps = taken.Addr().String()
		if err := workers.Run(t.Context()); err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
			t.Errorf("Run = %v, want an error that names %s", err, taken.Addr())
		}
	})
	t.Run("without configuration", func(t *testing.T) {
		workers := workers
		workers.ConfigFile = filepath.Join(dir, "missing.yaml")
		if err := workers.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "missing.yaml") {
			t.Errorf("Run = %v, want an error that names the file", err)
		}
	})
}

// stopper calls stop once the log says what is waited for.
type stopper struct {
	log  *bytes.Buffer
	word string
	stop func()
}

// Write is never called twice at once: a handler sees to it.
func (s *stopper) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte(s.word)) {
		s.stop()
	}
	return fmt.Fprintf(s.log, "%s", line)
}
