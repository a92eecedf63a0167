package deadletter

import (
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
)

func TestLine(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		n          int
		want       string
	}{
		{"fits", "as it is", 8, "as it is"},
		{"cut", "as it is", 7, "as i..."},
		{"never within a character", "éééé", 6, "é..."},
		{"one line", " a\r\nb\tc\x00d\u2028e ", 99, "a  b c d e"},
		{"not UTF-8", "a\xffb", 99, "a?b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := line(tt.text, tt.n); got != tt.want {
				t.Errorf("line(%q, %d) = %q, want %q", tt.text, tt.n, got, tt.want)
			}
		})
	}
}

// FuzzHeader: whatever a message came with and failed of, its letter says the
// same when it is read again, and its headers stay within their bounds.
func FuzzHeader(f *testing.F) {
	f.Add("source x: missing", "Content-Type", "application/json", "acme/1", 3)
	f.Add("a\nAttentive-Reason: forged", "Attentive-Reason", "forged", "\r\n", -1)
	f.Add(strings.Repeat("é", 5000), "Attentive-Original-", "", strings.Repeat("x", 1000), 1<<40)
	f.Fuzz(func(t *testing.T, detail, key, value, id string, attempts int) {
		put := Letter{
			Kind: contract.Subscribe, Destination: "acme", Job: contract.LiveJob,
			Reason: fault.Rejected, Detail: detail, Attempts: attempts, MsgID: id, Worker: "w",
			First: time.Unix(1, 0).UTC(), Last: time.Unix(2, 0).UTC(),
			Origin: Origin{Stream: "S", Subject: "s", Sequence: 9, Place: 7, Published: time.Unix(0, 5).UTC()},
			Header: nats.Header{},
		}
		if key != "" && key != nats.MsgIdHdr && key != HeaderReplay && key != HeaderPlace && key != HeaderPublished && key != HeaderForce && len(value) < 1<<10 && len(key) < 1<<10 {
			put.Header[key] = []string{value}
		}
		h := put.header()
		for _, ours := range []string{HeaderDetail, HeaderOriginMsgID} {
			text := h.Get(ours)
			if len(text) > maxDetailBytes || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
				t.Errorf("%s = %q is not one line of bounded length", ours, text)
			}
		}
		got, err := parse(contract.DeadSubject(put.Kind, put.Destination, put.Job), h)
		if err != nil {
			t.Fatal(err)
		}
		put.Detail, put.MsgID = line(detail, maxDetailBytes), line(id, maxTextBytes)
		if diff := cmp.Diff(put, got); diff != "" {
			t.Errorf("read again (-want +got):\n%s", diff)
		}
	})
}
