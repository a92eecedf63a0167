package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/dataset"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
)

// programEnv makes this test program the command itself: a process that a test
// can kill, built from what is being tested.
const programEnv = "ALLINONE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// process is a running command whose output a test follows.
type process struct {
	cmd *exec.Cmd

	mu     sync.Mutex // guards output
	output bytes.Buffer
	read   sync.WaitGroup
	lines  chan string // closed when there are no more
}

// start starts the command with args. It is killed at the end of the test.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.CommandContext(t.Context(), os.Args[0], args...), lines: make(chan string, 10_000)}
	p.cmd.Env = append(os.Environ(), programEnv+"=1")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	p.read.Go(func() {
		defer close(p.lines)
		defer r.Close()
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			p.mu.Lock()
			fmt.Fprintln(&p.output, lines.Text())
			p.mu.Unlock()
			p.lines <- lines.Text()
		}
	})
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_, _ = p.cmd.Process.Wait()
		p.read.Wait()
	})
	return p
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// until returns when the process has written a line with all the parts, or no
// longer writes.
func (p *process) until(t *testing.T, parts ...string) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case line, more := <-p.lines:
			found := more
			for _, part := range parts {
				found = found && strings.Contains(line, part)
			}
			if found || !more {
				return
			}
		case <-timeout:
			t.Fatalf("no line with %q within a minute:\n%s", parts, p.text())
		}
	}
}

// wait returns the exit code, -1 for a process that was killed.
func (p *process) wait() int {
	p.read.Wait()
	_ = p.cmd.Wait() // the code says it
	return p.cmd.ProcessState.ExitCode()
}

// TestDemoSurvivesKills kills a demo again and again, and looks at what it left
// in the sandbox.
func TestDemoSurvivesKills(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	t.Cleanup(func() { tellTrouble(t, filepath.Join(dir, "relay.log")) })
	input := dataset.Config{Rows: 60_000, Profiles: 1200, Seed: 11}
	args := []string{
		"demo", "--data", dir, "--rows", fmt.Sprint(input.Rows), "--profiles", fmt.Sprint(input.Profiles), "--seed", fmt.Sprint(input.Seed),
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, kill := range []struct {
		after  []string
		within time.Duration
	}{
		{[]string{"go through"}, 150 * time.Millisecond}, // while audiences are stored
		{[]string{"Winback", "uploading"}, 100 * time.Millisecond},
		{[]string{"Winback", "publishing"}, 10 * time.Millisecond},
		{[]string{"Attributes", "sending"}, 1500 * time.Millisecond},
		{[]string{"Attributes", "sending"}, 4 * time.Second},
		{[]string{"Attributes", "sending"}, 4 * time.Second},
	} {
		p := start(t, args...)
		p.until(t, kill.after...)
		wait := time.Duration(random.Int64N(int64(kill.within)))
		time.Sleep(wait)
		if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := p.wait(); code != -1 {
			t.Errorf("the demo ended with %d before it could be killed %v after %q:\n%s", code, wait, kill.after, p.text())
		}
		t.Logf("killed %v after %q", wait, kill.after)
	}
	p := start(t, args...)
	if code := p.wait(); code != 0 {
		t.Errorf("the demo after the last kill ended with %d, want 0:\n%s", code, p.text())
	}
	t.Log(p.text())
	s := remains(t, filepath.Join(dir, "sandbox"))
	set, err := dataset.Write(t.TempDir(), input)
	if err != nil {
		t.Fatal(err)
	}
	checkSegments(t, s, set)
	checkPeople(t, s, input, kept(p.text()))
}

// tellTrouble logs what broker and workers have warned of, if the test has failed.
func tellTrouble(t *testing.T, log string) {
	t.Helper()
	if !t.Failed() {
		return
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Log(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, `"level":"INFO"`) {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// remains opens a sandbox over what one has left.
func remains(t *testing.T, dir string) *sandbox.Sandbox {
	t.Helper()
	s, err := sandbox.New(account.With(sandbox.Config{Data: dir}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("sandbox: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return s
}

func checkSegments(t *testing.T, s *sandbox.Sandbox, set dataset.Set) {
	t.Helper()
	want := map[string]int{"VIPPreview": set.Preview.Want.Sent}
	for _, g := range set.Groups {
		want["Winback"+strings.ReplaceAll(g.Name, " ", "")] = g.Want.Sent
	}
	for _, segment := range s.Segments() {
		if segment.Published != 1 || segment.Count != want[segment.Name] {
			t.Errorf("segment %s: %d people, replaced %d times, want %d, once", segment.Name, segment.Count, segment.Published, want[segment.Name])
		}
		delete(want, segment.Name)
	}
	if len(want) > 0 {
		t.Errorf("segments %v never arrived", want)
	}
	for _, f := range s.Files().Files() {
		if f.Error != "" {
			t.Errorf("file %s: %s", f.Name, f.Error)
		}
	}
}

// kept counts the opt-ins that the summary of a demo lists as dead letters. The
// log, which tells of the same when it happens, does not count.
func kept(output string) (n int) {
	for line := range strings.Lines(output) {
		if strings.HasPrefix(line, "dead letter: ") && strings.Contains(line, ": outcome_unknown:") {
			n++
		}
	}
	return n
}

// checkPeople: everybody has all attributes; nobody got a text twice; and all
// wishes are fulfilled but those that are kept because nobody knows.
func checkPeople(t *testing.T, s *sandbox.Sandbox, input dataset.Config, kept int) {
	t.Helper()
	texts := make(map[string]map[api.TextKind]int)
	for _, m := range s.API().Outbox() {
		if texts[m.Phone] == nil {
			texts[m.Phone] = make(map[api.TextKind]int)
		}
		texts[m.Phone][m.Kind]++
	}
	for phone, kinds := range texts {
		for kind, n := range kinds {
			if n > 1 || kind == api.AlreadySubscribed {
				t.Errorf("%s was texted %q %d times", phone, kind, n)
			}
		}
	}
	waiting := 0
	for person := range dataset.People(input) {
		found, _ := s.API().Subscriber(person.Phone)
		for name, value := range person.Attributes {
			if found.Attributes[name] != value {
				t.Errorf("%s has %s %q, want %q", person.Phone, name, found.Attributes[name], value)
			}
		}
		status := found.Status(person.Phone, api.Marketing)
		switch {
		case person.OptsIn && status == "":
			waiting++
		case person.OptsIn && status != api.Active, person.OptsOut && status != api.Unsubscribed, !person.OptsIn && !person.OptsOut && status != "":
			t.Errorf("%s (in: %t, out: %t) is %q", person.Phone, person.OptsIn, person.OptsOut, status)
		}
	}
	if waiting != kept {
		t.Errorf("%d opt-ins are not done, %d are kept as dead letters", waiting, kept)
	}
}
