package config

import (
	"context"
	"os"
	"slices"
	"time"
)

// pollInterval is how often Watch looks at the files.
const pollInterval = time.Second

// Watch reads the configuration again when its file, or a file that it names,
// has changed, and on each signal from hup (which may be nil), until ctx ends.
// It passes the new Config, or why there is none, to apply, one after the other;
// after an error the Config that apply got last stays in force. A change that
// apply has seen is not reported again.
//
// cfg is what is in force at the start; a change since it was loaded counts. A
// changed file is read once it has not changed for a second, so that one that is
// still being written is not taken for whole.
func Watch(ctx context.Context, cfg *Config, hup <-chan os.Signal, apply func(*Config, error)) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	loaded := cfg.seen
	var settling []observed
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		case <-ticker.C:
			now := lookAgain(loaded)
			if slices.EqualFunc(now, loaded, observed.same) {
				settling = nil
				continue
			}
			if !slices.EqualFunc(now, settling, observed.same) {
				settling = now
				continue
			}
		}
		settling = nil
		r := &reader{path: cfg.Path}
		next, err := r.load()
		loaded = r.seen
		apply(next, err)
	}
}

// observed is a file and how it looked at one moment.
type observed struct {
	path string
	info os.FileInfo // nil when it cannot be looked at
	err  string      // why not
}

// same reports whether the file has not changed. One that was replaced has, even if
// the other one has its size and time.
func (o observed) same(later observed) bool {
	if o.info == nil || later.info == nil {
		return o == later
	}
	return o.path == later.path && os.SameFile(o.info, later.info) &&
		o.info.Size() == later.info.Size() && o.info.ModTime().Equal(later.info.ModTime())
}

func observe(path string) observed {
	info, err := os.Stat(path)
	if err != nil {
		return observed{path: path, err: err.Error()}
	}
	return observed{path: path, info: info}
}

func lookAgain(files []observed) []observed {
	now := make([]observed, len(files))
	for i, f := range files {
		now[i] = observe(f.path)
	}
	return now
}

// depend notes a file that the configuration depends on. It is called before
// the file is read, so that no later change is missed.
func (r *reader) depend(path string) { r.seen = append(r.seen, observe(path)) }
