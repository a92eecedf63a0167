package process_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"attentive.internal/deploy/process"
	"attentive.internal/pkg/loopback"
)

// start runs a shell script until the end of the test, after its first line of
// output.
func start(t *testing.T, script string) *process.Process {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Stdout = write
	p, err := process.Start(cmd)
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill() })
	if _, err := read.Read(make([]byte, 1)); err != nil {
		t.Fatalf("the script says nothing: %v", err)
	}
	return p
}

func TestStop(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, script string
		want         []string // in the error; none: no error
	}{
		{"ends well", `trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done`, nil},
		{
			"ends badly", `trap 'echo the lease was not released >&2; exit 3' TERM; echo up; while :; do sleep 0.01; done`,
			[]string{"sh: exit status 3", "the lease was not released"},
		},
		{"ends by the signal", `echo up; while :; do sleep 0.01; done`, []string{"sh: signal: terminated"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := start(t, tt.script).Stop()
			if tt.want == nil && err != nil {
				t.Fatal(err)
			}
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v does not say %q", err, want)
				}
			}
		})
	}
}

func TestKillLeavesNoTimeToSayAnything(t *testing.T) {
	t.Parallel()
	left := filepath.Join(t.TempDir(), "left")
	p := start(t, `trap 'touch "`+left+`"; exit 0' TERM; echo up; while :; do sleep 0.01; done`)
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Ended():
	default:
		t.Error("Kill returned before the process had ended")
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the process acted on its end: %v", err)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("kill what is dead: %v", err)
	}
	if err := p.Stop(); err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("Stop = %v, want it to say how the process ended", err)
	}
}

func TestFrozenProcessDoesNothing(t *testing.T) {
	t.Parallel()
	count := filepath.Join(t.TempDir(), "count")
	size := func() int64 {
		info, err := os.Stat(count)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	grows := func(within time.Duration) bool {
		for before, deadline := size(), time.Now().Add(within); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if size() > before {
				return true
			}
		}
		return false
	}
	p := start(t, `echo up; while :; do echo x >>"`+count+`"; sleep 0.01; done`)
	if !grows(time.Minute) {
		t.Fatal("the script does not count")
	}
	if err := p.Freeze(); err != nil {
		t.Fatal(err)
	}
	// What was under way when the signal came, one line at the most, may be written
	// late; the next would be after a hundredth of a second.
	most := size() + int64(len("x\n"))
	time.Sleep(250 * time.Millisecond)
	if got := size(); got > most {
		t.Errorf("a frozen process has written %d bytes more than one line", got-most)
	}
	if err := p.Thaw(); err != nil {
		t.Fatal(err)
	}
	if !grows(time.Minute) {
		t.Error("a thawed process does not go on")
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	p := start(t, `echo up; exec sleep 60`)
	if err := p.Ready(t.Context(), server.URL); err != nil || asked != 3 {
		t.Errorf("Ready = %v after %d questions, want nil after 3", err, asked)
	}
	gone := "http://127.0.0.1:1/readyz"
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("not done in time"))
	if err := p.Ready(ctx, gone); err == nil || !strings.Contains(err.Error(), "not done in time") {
		t.Errorf("Ready = %v, want the cause", err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Ready(t.Context(), gone); err == nil || !strings.Contains(err.Error(), "ended before it was ready") {
		t.Errorf("Ready of a dead process = %v", err)
	}
}

func TestOutputKeepsTheEnd(t *testing.T) {
	t.Parallel()
	p := start(t, `trap 'i=0; while [ $i -lt 5000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1' TERM
echo up; while :; do sleep 0.01; done`)
	err := p.Stop()
	if err == nil || len(err.Error()) > 17<<10 || !strings.HasSuffix(err.Error(), "line 4999") || strings.Contains(err.Error(), "line 1\n") {
		t.Errorf("Stop = %.100v..., want the last lines and only these", err)
	}
}

func TestBuildNamesWhatCannotBeBuilt(t *testing.T) {
	t.Parallel()
	_, err := process.Build(t.Context(), t.TempDir(), "./deploy/nothing")
	if err == nil || !strings.Contains(err.Error(), "./deploy/nothing") {
		t.Errorf("Build = %v, want an error that names the package", err)
	}
}

func TestFreeAddressIsKeptUntilTheEnd(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	address, err := process.FreeAddress(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if port, err := loopback.Hold(t.Context(), address); err == nil {
		t.Errorf("%s is given to another one: %v", address, port.Release())
	}
	cancel()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		port, err := loopback.Hold(t.Context(), address)
		if err == nil {
			if err := port.Release(); err != nil {
				t.Error(err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still kept: %v", address, err)
		}
	}
}
