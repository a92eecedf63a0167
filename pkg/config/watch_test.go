package config_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"attentive.internal/pkg/config"
)

// outcome is one call of apply.
type outcome struct {
	cfg *config.Config
	err error
}

// watched is a configuration that Watch watches within a bubble of synctest,
// where a second takes no time.
type watched struct {
	dir      string
	path     string
	cfg      *config.Config
	hup      chan os.Signal
	outcomes chan outcome
}

// watch runs test on a watched configuration.
func watch(t *testing.T, test func(t *testing.T, w *watched)) {
	t.Helper()
	dir := t.TempDir() // outside the bubble, where it is removed
	synctest.Test(t, func(t *testing.T) {
		w := &watched{dir: dir, path: filepath.Join(dir, "relay.yaml"), hup: make(chan os.Signal), outcomes: make(chan outcome, 16)}
		w.put(t, "relay.yaml", apiConfig("api_key: {file: key}"))
		w.put(t, "key", "key-1")
		cfg, err := config.Load(w.path)
		if err != nil {
			t.Fatal(err)
		}
		w.cfg = cfg
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			config.Watch(ctx, cfg, w.hup, func(cfg *config.Config, err error) { w.outcomes <- outcome{cfg, err} })
		}()
		defer func() { cancel(); <-stopped }()
		test(t, w)
	})
}

func (w *watched) put(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// after returns what Watch reported within d.
func (w *watched) after(d time.Duration) (all []outcome) {
	time.Sleep(d)
	synctest.Wait()
	for {
		select {
		case o := <-w.outcomes:
			all = append(all, o)
		default:
			return all
		}
	}
}

// one returns the one report of the next minute.
func (w *watched) one(t *testing.T) outcome {
	t.Helper()
	all := w.after(time.Minute)
	if len(all) != 1 {
		t.Fatalf("%d reports, want 1: %+v", len(all), all)
	}
	return all[0]
}

func TestWatchLeavesUnchangedAlone(t *testing.T) {
	t.Parallel()
	watch(t, func(t *testing.T, w *watched) {
		if all := w.after(time.Hour); len(all) > 0 {
			t.Errorf("reports without a change: %+v", all)
		}
	})
}

func TestWatchTakesAChange(t *testing.T) {
	t.Parallel()
	watch(t, func(t *testing.T, w *watched) {
		w.put(t, "relay.yaml", "lease: 20s\n"+apiConfig("api_key: {file: key}"))
		if o := w.one(t); o.err != nil || o.cfg.Lease != 20*time.Second || o.cfg == w.cfg {
			t.Errorf("got %+v, want a new configuration", o)
		}
		if w.cfg.Lease != 15*time.Second {
			t.Error("the old configuration changed")
		}
	})
}

func TestWatchReportsAFaultOnceAndRecovers(t *testing.T) {
	t.Parallel()
	watch(t, func(t *testing.T, w *watched) {
		w.put(t, "relay.yaml", "leas: 20s\n"+apiConfig("api_key: {file: key}"))
		o := w.one(t)
		if faults, ok := errors.AsType[config.Faults](o.err); !ok || o.cfg != nil || faults[0].Path != "leas" {
			t.Fatalf("got %+v, want the fault", o)
		}
		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		if o := w.one(t); !errors.Is(o.err, fs.ErrNotExist) {
			t.Fatalf("got %+v, want that the file is gone", o)
		}
		w.put(t, "relay.yaml", "lease: 20s\n"+apiConfig("api_key: {file: key}"))
		if o := w.one(t); o.err != nil || o.cfg.Lease != 20*time.Second {
			t.Errorf("got %+v, want the repaired configuration", o)
		}
	})
}

func TestWatchWaitsForTheWriter(t *testing.T) {
	t.Parallel()
	watch(t, func(t *testing.T, w *watched) {
		text := ""
		for line := range strings.Lines("lease: 20s\n" + apiConfig("api_key: {file: key}")) {
			text += line
			w.put(t, "relay.yaml", text)
			if all := w.after(time.Second); len(all) > 0 {
				t.Fatalf("read while it was being written: %+v", all)
			}
		}
		if o := w.one(t); o.err != nil || o.cfg.Lease != 20*time.Second {
			t.Errorf("got %+v, want the whole file", o)
		}
	})
}

func TestWatchFollowsSecrets(t *testing.T) {
	t.Parallel()
	watch(t, func(t *testing.T, w *watched) {
		before := w.cfg.Credentials[0].Account()
		w.put(t, "key", "a new key")
		if o := w.one(t); o.err != nil || o.cfg.Credentials[0].Account() == before {
			t.Errorf("got %+v, want the account of the new key", o)
		}
		if err := os.Remove(filepath.Join(w.dir, "key")); err != nil {
			t.Fatal(err)
		}
		if o := w.one(t); o.err != nil || len(o.cfg.Warnings()) != 1 {
			t.Errorf("got %+v, want a warning that the key is gone", o)
		}
		w.put(t, "key", "key-1")
		if o := w.one(t); o.err != nil || o.cfg.Credentials[0].Account() != before {
			t.Errorf("got %+v, want the account of the old key again", o)
		}
	})
}

// TestWatchFollowsProjectedVolumes: Kubernetes never writes a mounted ConfigMap or
// Secret. It makes a folder of the new files and swaps a link to it.
func TestWatchFollowsProjectedVolumes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// project does what the kubelet's atomic writer does. All files have one time, as of
	// a file system whose clock has not moved on: that alone tells nothing.
	written := time.Now()
	project := func(t *testing.T, version string, files map[string]string) {
		t.Helper()
		for name, text := range files {
			if err := errors.Join(
				os.MkdirAll(filepath.Join(dir, version), 0o700),
				os.WriteFile(filepath.Join(dir, version, name), []byte(text), 0o600),
				os.Chtimes(filepath.Join(dir, version, name), written, written),
			); err != nil {
				t.Fatal(err)
			}
		}
		next := filepath.Join(dir, "..data_tmp")
		if err := errors.Join(os.Symlink(version, next), os.Rename(next, filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	file := apiConfig("api_key: {file: key}")
	project(t, "..2026_01", map[string]string{"relay.yaml": file, "key": "key-1"})
	for _, name := range []string{"relay.yaml", "key"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		w := &watched{dir: dir, path: filepath.Join(dir, "relay.yaml"), outcomes: make(chan outcome, 16)}
		cfg, err := config.Load(w.path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			config.Watch(ctx, cfg, nil, func(cfg *config.Config, err error) { w.outcomes <- outcome{cfg, err} })
		}()
		defer func() { cancel(); <-stopped }()

		project(t, "..2026_02", map[string]string{"relay.yaml": "lease: 20s\n" + file, "key": "key-2"})
		if o := w.one(t); o.err != nil || o.cfg.Lease != 20*time.Second || o.cfg.Credentials[0].Account() == cfg.Credentials[0].Account() {
			t.Errorf("got %+v, want the new file with the new key", o)
		}
		project(t, "..2026_03", map[string]string{"relay.yaml": "lease: 20s\n" + file, "key": "key-3"})
		if o := w.one(t); o.err != nil || o.cfg.Lease != 20*time.Second {
			t.Errorf("got %+v, want the third key", o)
		}
	})
}

// TestWatchFollowsMissingFiles: a file whose absence was the fault is looked for.
func TestWatchFollowsMissingFiles(t *testing.T) {
	t.Parallel()
	watch(t, func(t *testing.T, w *watched) {
		w.put(t, "relay.yaml", "broker: {credentials: {file: creds}}\n"+apiConfig("api_key: {file: key}"))
		if o := w.one(t); o.err == nil {
			t.Fatalf("got %+v, want that the file is missing", o)
		}
		w.put(t, "creds", "x")
		if o := w.one(t); o.err != nil || o.cfg.Broker.CredentialsFile != filepath.Join(w.dir, "creds") {
			t.Errorf("got %+v, want the configuration", o)
		}
	})
}

func TestWatchObeysTheSignal(t *testing.T) {
	t.Parallel()
	watch(t, func(t *testing.T, w *watched) {
		for range 2 {
			w.hup <- syscall.SIGHUP
			if all := w.after(0); len(all) != 1 || all[0].err != nil {
				t.Errorf("reports %+v, want one configuration at once", all)
			}
		}
	})
}

// TestWatchSeesWhatChangedBefore: a change between Load and Watch counts.
func TestWatchSeesWhatChangedBefore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{dir: dir, path: filepath.Join(dir, "relay.yaml"), outcomes: make(chan outcome, 16)}
		w.put(t, "key", "key-1")
		w.put(t, "relay.yaml", apiConfig("api_key: {file: key}"))
		cfg, err := config.Load(w.path)
		if err != nil {
			t.Fatal(err)
		}
		w.put(t, "relay.yaml", "lease: 20s\n"+apiConfig("api_key: {file: key}"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		config.Watch(ctx, cfg, nil, func(cfg *config.Config, err error) { w.outcomes <- outcome{cfg, err} })
		if o := w.one(t); o.err != nil || o.cfg.Lease != 20*time.Second {
			t.Errorf("got %+v, want what changed before", o)
		}
	})
}
