package filename_test

import (
	"fmt"
	"regexp"
	"slices"
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

// FuzzFinal: of every name, what it was made of can be read, as the receiver does.
func FuzzFinal(f *testing.F) {
	f.Add("acme", int64(1_795_000_000), 1, ".pgp")
	f.Add("a.b-c_subscriber_segment_20261123_1", int64(0), 1<<31-1, ".csv.gz")
	form := regexp.MustCompile(`^(.+)_subscriber_segment_([0-9]{8})_([1-9][0-9]*)\.csv((?:\.[A-Za-z0-9.]+)?)$`)
	domains := regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`) // as package config has them
	suffixes := regexp.MustCompile(`^(\.[A-Za-z0-9][A-Za-z0-9.]{0,15})?$`)
	f.Fuzz(func(t *testing.T, domain string, seconds int64, n int, suffix string) {
		at := time.Unix(seconds, 0).UTC()
		if !domains.MatchString(domain) || !suffixes.MatchString(suffix) || n < 1 || at.Year() < 1970 || at.Year() > 9999 {
			return // no setting allows it
		}
		name := filename.Final(domain, filename.DayOf(at), n, suffix)
		got := form.FindStringSubmatch(name)
		want := []string{name, domain, at.Format("20060102"), fmt.Sprint(n), suffix}
		if !slices.Equal(got, want) {
			t.Errorf("%q reads as %q, want %q", name, got, want)
		}
	})
}
