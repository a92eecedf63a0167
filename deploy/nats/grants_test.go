package nats_test

import (
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"attentive.internal/deploy/nats/keys"
	"github.com/nats-io/nats-server/v2/server"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// occasional is what no day's work needs to show, and why it is allowed all the
// same.
func occasional() map[string]string {
	return map[string]string{
		"$JS.API.CONSUMER.RESET.ATTENTIVE_JOBS.*":       "after a crash",
		"$JS.API.CONSUMER.RESET.ATTENTIVE_PROFILES.*":   "after a crash",
		"$JS.API.CONSUMER.DELETE.KV_attentive_ledger.*": "a watch that ends",
		"$JS.API.DIRECT.GET.KV_attentive_owners.>":      "the library makes a key that was removed, or is there already",
		"$JS.API.DIRECT.GET.KV_attentive_ledger.>":      "the library makes a key that was removed, or is there already",
		"$JS.API.DIRECT.GET.KV_attentive_files.>":       "the library makes a key that was removed, or is there already",
		"$JS.API.DIRECT.GET.KV_attentive_consent.>":     "the library makes a key that was removed, or is there already",
		"$JS.API.STREAM.MSG.GET.KV_attentive_batches":   "API mode bulk",
		"$KV.attentive_batches.>":                       "API mode bulk",
		"$JS.FC.>":                                      "the broker asks a slow reader of a bucket to keep up",
		"$JS.API.STREAM.PURGE.OBJ_attentive_rejects":    "a job that is tried again writes its rejects anew",
		"$JS.API.STREAM.PURGE.OBJ_attentive_audiences":  "an upload that breaks off",
		"$O.attentive_audiences.M.*":                    "audiences of old jobs are removed",
		"$JS.API.CONSUMER.DELETE.KV_attentive_owners.*": "a watch that ends",
		"$JS.API.STREAM.MSG.GET.ATTENTIVE_EVENTS":       "an end that was not told is told again",
		"$JS.API.STREAM.INFO.ATTENTIVE_PROFILES":        "a stream that does not answer is looked for",
		"attentive.v1.dead.attributes.>":                "profiles that the API refuses",
		"attentive.v1.dead.unsubscribe.>":               "profiles that the API refuses",
	}
}

// idle reports what a user may publish to and has not, in a day that is to show
// all of it.
func (s *site) idle(t *testing.T) {
	t.Helper()
	opts, err := server.ProcessConfigFile(s.dir + "/nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	var unused []string
	for end := time.Now().Add(longest); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if unused = s.unused(opts.Nkeys); len(unused) == 0 {
			return // some is used a moment after what the test waits for
		}
	}
	t.Errorf("allowed, and never done:\n%s", strings.Join(unused, "\n"))
}

// unused returns what users may publish to, and have not yet.
func (s *site) unused(users []*server.NkeyUser) []string {
	s.said.mu.Lock()
	defer s.said.mu.Unlock()
	var unused []string
	for _, user := range users {
		if user.Permissions == nil || user.Permissions.Publish == nil {
			continue
		}
		for _, grant := range user.Permissions.Publish.Allow {
			if occasional()[grant] == "" && !matched(grant, s.said.used[user.Nkey]) {
				unused = append(unused, s.user(user.Nkey)+" "+grant)
			}
		}
	}
	return unused
}

func (s *site) user(nkey string) string {
	text, err := os.ReadFile(s.key(keys.Server, keys.Public))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutSuffix(strings.TrimSpace(line), ": "+nkey); ok {
			return name
		}
	}
	return nkey
}

// matched reports whether one of the subjects matches the pattern.
func matched(pattern string, subjects map[string]bool) bool {
	for subject := range subjects {
		if server.SubjectMatchesFilter(subject, pattern) {
			return true
		}
	}
	return false
}
