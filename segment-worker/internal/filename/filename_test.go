package filename_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/segment-worker/internal/filename"
)

func numbers(t *testing.T) *filename.Numbers {
	t.Helper()
	kv, err := queuetest.Start(t).Conn(t).JS.KeyValue(t.Context(), broker.BucketFiles)
	if err != nil {
		t.Fatal(err)
	}
	return filename.NewNumbers(kv)
}

func TestFinal(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, suffix, want string
		n                  int
	}{
		{"plain", "", "acme_subscriber_segment_20261123_1.csv", 1},
		{"encrypted", ".pgp", "acme_subscriber_segment_20261123_12.csv.pgp", 12},
	}
	day := filename.DayOf(time.Date(2026, 11, 23, 23, 59, 0, 0, time.UTC))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := filename.Final("acme", day, tt.n, tt.suffix); got != tt.want {
				t.Errorf("Final = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestDayFollowsTheZone(t *testing.T) {
	t.Parallel()
	newYork, err := time.LoadLocation("America/New_York")
	if err != nil {
		t.Fatal(err)
	}
	midnight := time.Date(2026, 11, 24, 2, 0, 0, 0, time.UTC)
	if got := filename.DayOf(midnight.In(newYork)); got != "20261123" {
		t.Errorf("day in New York = %s, want 20261123", got)
	}
}

func TestAllocateCountsPerDomainAndDay(t *testing.T) {
	t.Parallel()
	n := numbers(t)
	tests := []struct {
		domain string
		day    filename.Day
		owner  string
		files  int
		want   int
	}{
		{"acme", "20261123", "job-a", 3, 1},
		{"acme", "20261123", "job-b", 1, 4},
		{"acme", "20261123", "job-a", 3, 1}, // asked again after a crash
		{"acme", "20261123", "job-a/2", 1, 5},
		{"acme", "20261124", "job-c", 2, 1}, // a new day
		{"other", "20261123", "job-d", 2, 1},
	}
	for _, tt := range tests {
		got, err := n.Allocate(t.Context(), tt.domain, tt.day, tt.owner, tt.files)
		if err != nil {
			t.Fatal(err)
		}
		if got != tt.want {
			t.Errorf("Allocate(%s, %s, %s, %d) = %d, want %d", tt.domain, tt.day, tt.owner, tt.files, got, tt.want)
		}
	}
}

func TestConcurrentJobsNeverShareANumber(t *testing.T) {
	t.Parallel()
	n := numbers(t)
	const jobs, files = 16, 3
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		owner = map[int]string{}
	)
	for j := range jobs {
		wg.Go(func() {
			job := fmt.Sprint("job-", j)
			first, err := n.Allocate(t.Context(), "acme", "20261123", job, files)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for i := first; i < first+files; i++ {
				if owner[i] != "" {
					t.Errorf("number %d given to %s and %s", i, owner[i], job)
				}
				owner[i] = job
			}
		})
	}
	wg.Wait()
	for i := 1; i <= jobs*files; i++ {
		if owner[i] == "" {
			t.Errorf("number %d was skipped", i)
		}
	}
}
