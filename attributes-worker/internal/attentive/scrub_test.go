package attentive

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestScrub(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		body    string
		secrets []string
		want    string
	}{
		{"plain", `{"message":"signUpSourceId is not active"}`, nil, `{"message":"signUpSourceId is not active"}`},
		{"phones", `no +1 (212) 555-0100, 12125550100 or 212.555.0100 here`, nil, `no [...], [...] or [...] here`},
		{"short numbers stay", `line 12 of 345678, status 400`, nil, `line 12 of 345678, status 400`},
		{"e-mail addresses", `user <Ann.O'Hara+x@mail.example.com> unknown`, nil, `user <Ann.O'[...]> unknown`},
		{"the request's ids", `no user u-1 or U-1`, []string{"u-1"}, `no user [...] or [...]`},
		{"an id of one digit stands alone", `status 404: user 4 (id=4, "4") of 144 at 4.2`, []string{"4"}, `status 404: user [...] (id=[...], "[...]") of 144 at [...].2`},
		{"an id of two letters", `no AB, ab or cab; é`, []string{"ab", "é"}, `no [...], [...] or cab; [...]`},
		{"an id of one sign", `a#b`, []string{"#"}, `a[...]b`},
		{"longest first", `ann and annabel`, []string{"ann", "annabel"}, `[...] and [...]`},
		{"escaped in JSON", `{"value":"Fran\u00e7ois \u003cF\u003e \"Q\""}`, []string{`François <F> "Q"`}, `{"value":"[...]"}`},
		{"escaped in a URL", `GET ?email=a%2Bb%40c.d&x=%2B12125550100`, []string{"a+b@c.d", "+12125550100"}, `GET ?email=[...]&x=[...]`},
		{"lines and control characters", "a\r\n\tb\x00\x1b[31mc", nil, "a b [31mc"},
		{"broken UTF-8", "a\xffb", nil, "a[...]b"},
		{"empty", "", []string{"x"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := scrub([]byte(tt.body), tt.secrets); got != tt.want {
				t.Errorf("scrub(%q) = %q, want %q", tt.body, got, tt.want)
			}
		})
	}
}

func TestAnswerEchoingTheRequestShowsNothing(t *testing.T) {
	t.Parallel()
	request := Attributes{
		User:     User{Phone: "+12125550100", Email: "ann@example.com"},
		External: ExternalIDs{ClientUserID: "client-77", Custom: map[string]string{"loyalty": "gold-1234"}},
		Values:   map[string]any{"full name": "Ann O'Hara", "salary": 85123.0, "sizes": "S", "vip": true},
	}
	var body string
	a := serve(t, func(w http.ResponseWriter, r *http.Request) {
		answer(http.StatusBadRequest, body)(w, r)
	})
	c := dial(t, Config{BaseURL: a.URL})
	body = "{}"
	_, _ = c.SetAttributes(t.Context(), request)
	body = a.arrived()[0].Body
	_, err := c.SetAttributes(t.Context(), request)
	if err == nil {
		t.Fatal("400 was taken for success")
	}
	for _, secret := range []string{"2125550100", "ann@", "client-77", "gold-1234", "O'Hara", "85123"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("error %q shows %q", err, secret)
		}
	}
	if !strings.Contains(err.Error(), "full name") {
		t.Errorf("error %q does not show the names of attributes", err)
	}
}

func FuzzScrub(f *testing.F) {
	f.Add([]byte(`{"error":"user +12125550100 not found"}`), "+12125550100")
	f.Add([]byte("\xff\xfe\x00"), "a")
	f.Add([]byte(`"\u0061nn"`), "ann")
	f.Add([]byte(strings.Repeat("é", 400)), "éé")
	f.Fuzz(func(t *testing.T, body []byte, secret string) {
		got := scrub(body, []string{secret})
		if len(got) > detailBytes || !utf8.ValidString(got) {
			t.Errorf("scrub(%q) = %q: %d bytes", body, got, len(got))
		}
		// What stands for a secret may hold a secret that is as short.
		if len(secret) > len(gap) && strings.Contains(got, secret) {
			t.Errorf("scrub(%q) = %q still holds %q", body, got, secret)
		}
		if strings.ContainsAny(got, "\n\r\x00") {
			t.Errorf("scrub(%q) = %q is not one line", body, got)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 16, 0, 0, 0, time.UTC)
	tests := []struct {
		name, value, date string
		want              time.Duration
	}{
		{"missing", "", "", 0},
		{"seconds", "12", "", 12 * time.Second},
		{"spaces", " 12 ", "", 12 * time.Second},
		{"none", "0", "", 0},
		{"negative", "-5", "", 0},
		{"beyond the cap", "86400", "", longestWait},
		{"beyond all numbers", "99999999999999999999999", "", 0},
		{"date", "Mon, 23 Nov 2026 16:00:30 GMT", "", 30 * time.Second},
		{"date by a clock that is wrong", "Mon, 23 Nov 2026 17:00:30 GMT", "Mon, 23 Nov 2026 17:00:00 GMT", 30 * time.Second},
		{"date gone by", "Mon, 23 Nov 2026 15:00:00 GMT", "", 0},
		{"date far away", "Mon, 23 Nov 2099 15:00:00 GMT", "", longestWait},
		{"neither", "soon", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{"Retry-After": {tt.value}, "Date": {tt.date}}
			if got := retryAfter(h, now); got != tt.want {
				t.Errorf("retryAfter(%q) = %v, want %v", tt.value, got, tt.want)
			}
		})
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120", "")
	f.Add("Mon, 23 Nov 2026 16:00:30 GMT", "Mon, 23 Nov 2026 16:00:00 GMT")
	f.Add("-1", "x")
	f.Fuzz(func(t *testing.T, value, date string) {
		got := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}, time.Unix(1_800_000_000, 0))
		if got < 0 || got > longestWait {
			t.Errorf("retryAfter(%q, %q) = %v", value, date, got)
		}
	})
}

func FuzzEncodeIsJSON(f *testing.F) {
	f.Add("name", "value")
	f.Add("é\u2028<&>", "\xff")
	f.Fuzz(func(t *testing.T, name, value string) {
		body, err := encode(map[string]any{name: value})
		if err != nil {
			t.Fatal(err)
		}
		var back map[string]string
		if err := json.Unmarshal(body, &back); err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		if utf8.ValidString(name) && utf8.ValidString(value) && back[name] != value {
			t.Errorf("%q came back as %q", value, back[name])
		}
	})
}
