package peer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"attentive.internal/pkg/peer"
)

// recorder is a testing.TB that keeps how the test ended.
type recorder struct {
	testing.TB
	ended, text string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) { r.end("fatal", format, args) }

func (r *recorder) Skipf(format string, args ...any) { r.end("skip", format, args) }

func (r *recorder) end(how, format string, args []any) {
	r.ended, r.text = how, fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// need calls Need as a test would and returns its result and how it ended.
func need(t *testing.T, program string) (string, *recorder) {
	t.Helper()
	var path string
	r := &recorder{TB: t, ended: "returned"}
	done := make(chan struct{})
	go func() {
		defer close(done)
		path = peer.Need(r, program)
	}()
	<-done
	return path, r
}

func TestNeed(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "present-peer"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, program, require string
		want                   string
		says                   []string
	}{
		{name: "installed", program: "present-peer", want: "returned"},
		{name: "installed and required", program: "present-peer", require: "1", want: "returned"},
		{name: "missing", program: "absent-peer", want: "skip", says: []string{"absent-peer"}},
		{name: "missing from Debian", program: "gpgconf", want: "skip", says: []string{"gpgconf", "apt-get install gnupg"}},
		{name: "missing and required", program: "absent-peer", require: "1", want: "fatal", says: []string{"absent-peer", "RELAY_REQUIRE_PEERS"}},
		{name: "any other value does not require", program: "absent-peer", require: "0", want: "skip"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", dir)
			t.Setenv(peer.RequireEnv, tt.require)
			path, r := need(t, tt.program)
			if r.ended != tt.want {
				t.Fatalf("Need(%q) ended with %s (%s), want %s", tt.program, r.ended, r.text, tt.want)
			}
			if tt.want == "returned" && path != filepath.Join(dir, tt.program) {
				t.Errorf("Need(%q) = %q, want it in %q", tt.program, path, dir)
			}
			for _, want := range tt.says {
				if !strings.Contains(r.text, want) {
					t.Errorf("Need(%q) says %q, want %q in it", tt.program, r.text, want)
				}
			}
		})
	}
}

// TestNeedLooksWhereSystemProgramsLive keeps sshd findable for ordinary users.
func TestNeedLooksWhereSystemProgramsLive(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/sshd"); err != nil {
		t.Skip("sshd is not installed: apt-get install openssh-server")
	}
	t.Setenv("PATH", t.TempDir())
	if got, want := peer.Need(t, "sshd"), "/usr/sbin/sshd"; got != want {
		t.Errorf("Need(sshd) = %q, want %q", got, want)
	}
}
