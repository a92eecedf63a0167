// Package demo shows the relay at work on a local Attentive, and proves it: it
// generates audiences and attributes, sends them as jobs through the broker and
// both workers to the sandbox, and compares what arrived with what the generator
// counted.
//
// A demo with a directory of its own can be killed at any moment and started
// again: it goes on where it was, and the comparison is the same. Its jobs have
// ids that follow from what is sent, so publishing them again changes nothing.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"attentive.internal/deploy/allinone/dataset"
	"attentive.internal/deploy/allinone/stage"
	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
)

// ErrDiffers is returned when what arrived is not what was expected. The
// differences have been written.
var ErrDiffers = errors.New("what arrived differs from what was expected")

// Options says what to show.
type Options struct {
	// Input is what to generate and send.
	Input dataset.Config
	// Dir keeps everything. Empty: a temporary directory, removed when all agrees.
	Dir string
	// Prefer holds addresses to listen on where Dir remembers none.
	Prefer stage.Addresses
	// Out gets what was found, Screen the progress.
	Out    io.Writer
	Screen *progress.Screen
	// Serve is called after the comparison, and all goes on running until it
	// returns. It may be nil.
	Serve func(ctx context.Context, s *stage.Stage) error
}

// logFile is the log of both workers and the broker, below the directory.
const logFile = "relay.log"

// Run runs the demo, and returns ErrDiffers when the numbers do not agree.
func Run(ctx context.Context, opt Options) (err error) {
	begin := time.Now()
	dir, remove, err := directory(opt.Dir)
	if err != nil {
		return err
	}
	defer func() {
		if opt.Dir == "" && err != nil && ctx.Err() == nil {
			fmt.Fprintf(opt.Out, "kept for a look: %s, with the log in %s\n", dir, logFile)
			return
		}
		err = errors.Join(err, remove())
	}()
	log, err := os.OpenFile(filepath.Join(dir, logFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	s, err := stage.Open(ctx, stage.Config{Dir: dir, Prefer: opt.Prefer, Keys: []sandbox.APIKey{founder()}, Log: logger(log, opt.Screen)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(ctx)) }()
	if err := remember(filepath.Join(dir, "demo.json"), opt.Input); err != nil {
		return err
	}
	set, err := dataset.Write(s.Inputs(), opt.Input)
	if err != nil {
		return err
	}
	p := &play{Stage: s, options: opt, set: set, begin: begin}
	p.introduce()
	return s.Run(ctx, p.run)
}

// directory makes the directory to work in, and says how to be rid of it.
func directory(dir string) (_ string, remove func() error, err error) {
	if dir != "" {
		return dir, func() error { return nil }, os.MkdirAll(dir, 0o700)
	}
	dir, err = os.MkdirTemp("", "attentive-relay-demo-")
	return dir, func() error { return os.RemoveAll(dir) }, err
}

// logger writes everything to the file, and to the screen what a person must act
// on, in few words: the file has the others.
func logger(file io.Writer, screen *progress.Screen) *slog.Logger {
	short := func(_ []string, a slog.Attr) slog.Attr {
		switch a.Key {
		case slog.MessageKey, "kind", "destination", "reason", "err":
			return a
		}
		return slog.Attr{}
	}
	return slog.New(slog.NewMultiHandler(
		slog.NewJSONHandler(file, nil),
		slog.NewTextHandler(screen, &slog.HandlerOptions{Level: slog.LevelError, ReplaceAttr: short}),
	))
}

// remember keeps what the directory is a demo of, and refuses another.
func remember(file string, input dataset.Config) error {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		if text, err = json.Marshal(input); err == nil {
			err = os.WriteFile(file, append(text, '\n'), 0o600)
		}
		return err
	}
	if err != nil {
		return err
	}
	var known dataset.Config
	if err := json.Unmarshal(text, &known); err != nil {
		return fmt.Errorf("read %s: %w; use another directory", file, err)
	}
	if known != input {
		return fmt.Errorf("%s is the demo of --rows %d --profiles %d --seed %d: repeat these, or use another directory",
			filepath.Dir(file), known.Rows, known.Profiles, known.Seed)
	}
	return nil
}

// founder is the key that the first subscribers are made with.
func founder() sandbox.APIKey {
	return sandbox.APIKey{ID: "founder", Token: "founder-token", Scopes: []string{api.ScopeSubscriptions}}
}
