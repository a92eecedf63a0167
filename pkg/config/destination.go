package config

import (
	"slices"
	"time"

	"attentive.internal/pkg/access"
	"attentive.internal/pkg/segmentname"
)

// Identifier is what a subscriber is known by.
type Identifier string

// The identifiers that a destination can be set to.
const (
	Phone Identifier = "phone"
	Email Identifier = "email"
)

// Destination is a place that jobs are sent to.
type Destination struct {
	// ID is unique: 1 to 32 of a-z, 0-9 and hyphen.
	ID string
	// Name is for people. Default: the id.
	Name string
	// Plugin is PluginSegments or PluginAttributes.
	Plugin string
	// Credential is the id of a credential that fits the plugin.
	Credential string
	// Access is what the destination grants. Default: services only.
	Access access.Permissions
	// Segment is set for PluginSegments, else nil. What a template may override
	// is only right in Template.Segment.
	Segment *SegmentSettings
	// Attributes is set for PluginAttributes, else nil.
	Attributes *AttributesSettings
	// Templates has at least one; ids are unique within the destination.
	Templates []Template
}

// Template returns the template with the id.
func (d Destination) Template(id string) (Template, bool) {
	i := slices.IndexFunc(d.Templates, func(t Template) bool { return t.ID == id })
	if i < 0 {
		return Template{}, false
	}
	return d.Templates[i], true
}

// AttributesSettings are the settings of a destination for attributes.
type AttributesSettings struct {
	// Identifier is the primary one: every row must have it, and subscribes use
	// its channel.
	Identifier Identifier
	// SignUp says what a subscribe signs up to; zero when nothing may subscribe.
	SignUp SignUp
	// SingleOptIn subscribes without asking the person to confirm. Default false.
	SingleOptIn bool
	RetryBudget RetryBudget
	// SubscribeMaxAge is the age beyond which a subscribe is not sent any more.
	// Default 7 days, from 1 minute to 365 days.
	SubscribeMaxAge time.Duration
	// UnknownSettle is how long a subscribe or unsubscribe without an answer is
	// left alone before its outcome is looked up. Default 60 s, from 100 ms to
	// 1 hour.
	UnknownSettle time.Duration
	// APIMode is how attributes are sent. Default Custom.
	APIMode APIMode
	Bulk    Bulk
	// OnlyChanged is nil when attributes are sent however often they come.
	OnlyChanged *OnlyChanged
	// Nulls is what becomes of values that are not there. Default SkipNulls.
	Nulls     Nulls
	Sensitive Sensitive
	// TextingHours are those in which subscribes may text people. Default: all.
	TextingHours Hours
}

// SignUp is a sign-up unit by id, or else what Attentive finds one by.
type SignUp struct {
	// Unit is the id of an active API sign-up unit; the rest is then empty.
	Unit string
	// Language is an ISO 639-1 code, "en".
	Language string
	// Country is an ISO 3166-1 code, "US".
	Country string
	// SubscriptionType is MARKETING or TRANSACTIONAL.
	SubscriptionType string
}

// RetryBudget is what may be spent on one message before it is dead-lettered:
// both must be spent.
type RetryBudget struct {
	// Duration since the first attempt, blocks not counted. Default 24 h, from
	// 1 second to 30 days.
	Duration time.Duration
	// Attempts, the first included. Default 10, from 1 to 1,000.
	Attempts int
}

// Template is a data template: how the columns of a source become what is sent.
type Template struct {
	// ID is unique within the destination: 1 to 32 of a-z, 0-9 and hyphen.
	ID string
	// Name is for people. Default: the id.
	Name string
	// Access is what the template grants beyond the destination. Default nothing.
	Access access.Permissions
	// Campaigns is true when campaigns may use the template. Default false.
	Campaigns bool
	// DefaultRegion is the ISO 3166-1 code of the region whose national phone
	// numbers are understood: the template's own, else that of the destination's
	// settings. Empty: only numbers with a country code are.
	DefaultRegion string
	// Filename names the segments of a campaign. Zero for PluginAttributes.
	Filename segmentname.Template
	// Segment are the settings of the destination with what the template
	// overrides. Nil for PluginAttributes.
	Segment *SegmentSettings
	// Columns names the columns with a meaning of their own. For PluginSegments
	// only that of the identifier and Group are set; for PluginAttributes at
	// least that one.
	Columns Columns
	// EveryColumn is true when each column not named in Columns is sent as a
	// text attribute under its own name; Attributes is then empty. Always false
	// for PluginSegments.
	EveryColumn bool
	// Attributes are the columns that are sent as attributes, in file order.
	Attributes []Attribute
}

// Columns are names of columns, exactly as in the source; empty: not there.
type Columns struct {
	Phone, Email, ClientUserID, ShopifyID, KlaviyoID string
	// OptIn holds whether the person opts in or out.
	OptIn string
	// Group holds the name of the group that a row belongs to, in campaigns. Only
	// for PluginSegments.
	Group string
}

// Of returns the column of the identifier.
func (c Columns) Of(i Identifier) string {
	if i == Email {
		return c.Email
	}
	return c.Phone
}

// AttributeType is the type that an attribute's values are sent as.
type AttributeType string

// The types of attributes.
const (
	String  AttributeType = "string"
	Number  AttributeType = "number"
	Boolean AttributeType = "boolean"
)

// Attribute is a column that is sent as an attribute.
type Attribute struct {
	// Column as in the source.
	Column string
	// Name in Attentive, at most 200 characters, unique within the template.
	// Default: the column.
	Name string
	// Type of the values. Default String.
	Type AttributeType
}
