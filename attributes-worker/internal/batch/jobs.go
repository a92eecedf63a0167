package batch

import (
	"context"
	"slices"
	"sync"
	"time"
)

// How long to wait before a batch is asked after again: from the first to the
// last, twice as long each time. Of those that somebody waits for the shorter.
const (
	wantedFirst = 100 * time.Millisecond
	wantedLast  = 5 * time.Second
	idleFirst   = 2 * time.Second
	idleLast    = 30 * time.Second
)

// Job is a batch that was accepted and is not completed.
type Job struct {
	// ID is what the API calls it.
	ID string
	// Accepted is when it was.
	Accepted time.Time

	jobs *Jobs
	// What follows is guarded by jobs.mu.
	wanted bool
	asked  int // times
	last   time.Time
	out    bool // somebody is asking, or it is done
}

// Jobs are the batches that are not completed, and in which order they are asked
// after: those first that somebody waits for. Its methods may be called
// concurrently.
type Jobs struct {
	wake chan struct{} // a hint for Next

	mu      sync.Mutex // guards what follows, and every Job
	jobs    []*Job
	typical time.Duration // how long batches take, about
}

// NewJobs returns empty Jobs.
func NewJobs() *Jobs { return &Jobs{wake: make(chan struct{}, 1)} }

// New returns a batch that was accepted then. Nobody asks after it before Add.
func (j *Jobs) New(id string, accepted time.Time) *Job {
	return &Job{ID: id, Accepted: accepted, jobs: j, last: accepted}
}

// Add has a batch asked after.
func (j *Jobs) Add(job *Job) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.jobs = append(j.jobs, job)
	j.hint()
}

// want says that somebody waits for the batch.
func (job *Job) want() {
	job.jobs.mu.Lock()
	defer job.jobs.mu.Unlock()
	if !job.wanted {
		job.wanted, job.asked = true, 0
		job.jobs.hint()
	}
}

func (j *Jobs) hint() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Next returns the batch that is to be asked after now, as soon as there is one.
// The caller then calls Again or Done. It fails with ctx's error.
func (j *Jobs) Next(ctx context.Context) (*Job, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		job, wait := j.next(time.Now())
		if job != nil {
			j.hint() // there may be another, for somebody else
			return job, nil
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-j.wake:
		}
	}
}

// next returns the most urgent batch that is due, or how long until one is.
func (j *Jobs) next(now time.Time) (first *Job, wait time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	wait = forever
	for _, job := range j.jobs {
		if job.out {
			continue
		}
		due := j.due(job).Sub(now)
		switch {
		case due > 0:
			wait = min(wait, due)
		case first == nil || job.wanted && !first.wanted ||
			job.wanted == first.wanted && j.due(job).Before(j.due(first)):
			first = job
		}
	}
	if first != nil {
		first.out = true
	}
	return first, wait
}

// due returns when a batch is to be asked after; the lock is held.
//
// A batch that nobody waits for is asked after when it is very likely completed:
// the limit allows hardly more than one question a batch.
func (j *Jobs) due(job *Job) time.Time {
	if job.wanted {
		return job.last.Add(min(wantedLast, wantedFirst<<min(job.asked, 10)))
	}
	pause := min(idleLast, idleFirst<<min(job.asked, 10))
	if job.asked == 0 {
		pause = min(idleLast, max(pause, j.typical+j.typical/2))
	}
	return job.last.Add(pause)
}

// Again says that the batch was asked after and is not completed.
func (j *Jobs) Again(job *Job) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if job.asked == 0 { // it takes longer; a stuck one does not say so again and again
		j.typical = max(j.typical, min(idleLast, time.Since(job.Accepted))*3/4)
	}
	job.asked, job.last, job.out = job.asked+1, time.Now(), false
	j.hint()
}

// Done takes a batch out, whatever became of it.
func (j *Jobs) Done(job *Job) {
	j.mu.Lock()
	defer j.mu.Unlock()
	// How long we waited for it must not become what is typical, for then the next
	// one is waited for longer still.
	j.typical -= j.typical / 256
	j.jobs = slices.DeleteFunc(j.jobs, func(other *Job) bool { return other == job })
}

// Len returns how many batches are not completed.
func (j *Jobs) Len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.jobs)
}
